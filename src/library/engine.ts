import { BlockError } from '../base/error.js';
import { createImage } from '../block/create.js';
import type { DriverDescription, NodeOptions } from '../block/driver.js';
import { allDrivers } from '../drivers/index.js';
import { createRealHost } from '../host/real.js';
import type { Job } from '../jobs/job.js';
import { Engine as CommandedEngine } from '../monitor/engine.js';
import type { EngineProperties } from '../monitor/parts.js';
import type { CommandArguments, CommandName } from '../schema/commands.js';
import type { EventName } from '../schema/events.js';
import { Disk, type DiskOptions } from './disk.js';
import { type EventOptions, EventStream } from './events.js';
import { Session, type SessionOptions } from './session.js';

/** Commands that start a job. */
export type JobCommand = {
  [N in CommandName]: CommandArguments<N> extends { 'job-id'?: string } ? N : never;
}[CommandName];

export interface ImageProperties {
  filename: string;
  /** 'qcow2', 'raw' or a format of your own. */
  format: string;
  /** Virtual size, a multiple of 512. */
  sizeBytes: number;
  /** The image that it shows where it holds nothing itself. */
  backing?: { filename: string; format: string };
  /** The format's own, by QMP name: 'cluster-size', 'version' ... */
  options?: NodeOptions;
}

/**
 * One live block-storage engine in your program; several live side by side. Close it, or let `await using` do so:
 * everything written is durable then, files are closed, locks released.
 */
export class Engine extends CommandedEngine implements AsyncDisposable {
  /**
   * Runs a command that starts a job, and answers the job; `'job-id'` is made up when not given. Errors: those of the
   * command. The job's own show in its result().
   */
  async start<N extends JobCommand>(
    name: N,
    args: Omit<CommandArguments<N>, 'job-id'> & { 'job-id'?: string },
  ): Promise<Job> {
    const id = args['job-id'] ?? this.jobs.newId();
    let started: Job | undefined;
    const stop = this.jobs.onNew((job) => {
      if (job.id === id) started = job;
    });
    try {
      await this.hub.execute(name, { ...args, 'job-id': id });
    } finally {
      stop();
    }
    if (!started) throw new BlockError('invalid', `'${name}' starts no job`);
    return started;
  }

  /** Events from the call on, as `for await` takes them, until the engine closes. Errors: kind closed, invalid. */
  events<N extends EventName = EventName>(options: EventOptions<N> = {}): EventStream<N> {
    return new EventStream(this, options);
  }

  /** What is made through it ends with it. Errors: exists, invalid. */
  openSession(id: string, options: SessionOptions = {}): Promise<Session> {
    return Session.open(this, id, options);
  }

  /** A disk of your own on a node, after commands under way. Errors: not-found; see Disk.open. */
  openDisk(nodeName: string, options: DiskOptions = {}): Promise<Disk> {
    return this.inTurn(() => Disk.open(this.graph, this.graph.node(nodeName), options));
  }

  /** Makes an image file, after commands under way; durable on return. Errors: invalid, exists, those of the host. */
  createImage(properties: ImageProperties): Promise<void> {
    return this.inTurn(async () => {
      const { filename, format, sizeBytes, backing, options } = checkedImage(properties);
      await createImage(this.opener, filename, format, {
        sizeBytes,
        ...(backing && { backingFile: backing.filename, backingFormat: backing.format }),
        ...(options && { options }),
      });
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** Errors: kind invalid. */
function checkedImage(properties: ImageProperties): ImageProperties {
  const { filename, format, sizeBytes, backing } = properties;
  const names = [filename, format, ...(backing ? [backing.filename, backing.format] : [])];
  if (names.some((name) => typeof name !== 'string' || name === ''))
    throw new BlockError('invalid', 'File names and formats are strings');
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0 || sizeBytes % 512 !== 0)
    throw new BlockError('invalid', 'Image size must be a multiple of 512 bytes');
  return properties;
}

const PROPERTIES: ReadonlySet<string> = new Set<keyof CreateEngineProperties>([
  ...(['host', 'drivers', 'moreDrivers', 'kind', 'startStopped', 'incoming', 'print', 'printError'] as const),
  'onUnexpectedError',
  'untrusted',
]);

/** Errors: kind invalid. */
function checkProperties(properties: CreateEngineProperties): void {
  for (const key of Object.keys(properties))
    if (!PROPERTIES.has(key)) throw new BlockError('invalid', `Parameter '${key}' is unexpected`);
  const { kind } = properties;
  if (kind !== undefined && kind !== 'machine' && kind !== 'storage-daemon')
    throw new BlockError('invalid', "Parameter 'kind' expects 'machine' or 'storage-daemon'");
}

/** What createEngine makes up: the machine that Node.js runs on, all drivers, a storage daemon's commands. */
export type CreateEngineProperties = Partial<EngineProperties> & {
  /** Of your own, beside all others. */
  moreDrivers?: Iterable<DriverDescription>;
};

/** Errors: kind invalid. */
export async function createEngine(properties: CreateEngineProperties = {}): Promise<Engine> {
  checkProperties(properties);
  const { moreDrivers = [], drivers = allDrivers, ...rest } = properties;
  return new Engine({
    host: createRealHost(),
    kind: 'storage-daemon',
    ...rest,
    drivers: [...drivers, ...moreDrivers],
  });
}
