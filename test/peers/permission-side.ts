import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { Engine } from '../../src/monitor/engine.js';
import type { JsonObject } from '../../src/schema/types.js';
import { Daemon, run } from './daemon.js';
import { DISK_BYTES, FILES, NODES, type User } from './permission-users.js';

type Json = { [key: string]: unknown };

/** What is asked of either side. */
interface Program {
  readonly events: Array<{ event?: string; data?: Json }>;
  raw(command: string, args: Json): Promise<{ return?: unknown; error?: { desc: string } }>;
  event(name: string, match?: Json): Promise<Json>;
  kill(): Promise<void>;
}

/** Our engine, in this process: it is there at once. Its working folder is not `folder`, so names are made absolute. */
class EngineProgram implements Program {
  readonly events: Array<{ event: string; data: Json }> = [];
  readonly #engine = new Engine({ host: createRealHost(), drivers: allDrivers, kind: 'storage-daemon' });
  #wake: () => void = () => undefined;

  constructor() {
    this.#engine.onEvent((event, data) => {
      this.events.push({ event, data });
      this.#wake();
    });
  }

  async raw(command: string, args: Json): Promise<{ return?: unknown; error?: { desc: string } }> {
    try {
      return { return: await this.#engine.hub.execute(command, args as JsonObject) };
    } catch (error) {
      return { error: { desc: error instanceof Error ? error.message : String(error) } };
    }
  }

  async event(name: string, match: Json = {}): Promise<Json> {
    for (;;) {
      const index = this.events.findIndex(
        ({ event, data }) =>
          event === name && Object.entries(match).every(([key, value]) => data[key] === value),
      );
      if (index >= 0) return this.events.splice(index, 1)[0]?.data ?? {};
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  kill(): Promise<void> {
    return this.#engine.close();
  }
}

export type Who = 'theirs' | 'ours';

/** What a first user is at when the second one comes. */
export type Moment = 'at work' | 'ready' | 'pending';

/** Images of which every one holds some data, once for all. */
export function makeImages(folder: string): void {
  const qcow2 = (name: string, ...backing: string[]): string =>
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...backing, name, String(DISK_BYTES));
  const write = (name: string, format: string, command: string): string =>
    run(folder, 'qemu-io', '-f', format, '-c', command, name);
  qcow2('a');
  qcow2('b', '-b', 'a', '-F', 'qcow2');
  qcow2('c', '-b', 'b', '-F', 'qcow2');
  qcow2('e');
  qcow2('s');
  run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 't', String(DISK_BYTES));
  write('a', 'qcow2', 'write -P 1 0 6M');
  write('b', 'qcow2', 'write -P 2 1M 4M');
  write('c', 'qcow2', 'write -P 3 3M 4M');
  write('e', 'qcow2', 'write -P 4 0 6M');
  write('t', 'raw', 'write -P 5 0 6M');
}

function nodeOptions(folder: string): Json[] {
  return NODES.map((name, i) => ({
    driver: name === 'T' ? 'raw' : 'qcow2',
    'node-name': name,
    file: { driver: 'file', filename: join(folder, name.toLowerCase()) },
    ...((name === 'B' || name === 'C') && { backing: NODES[i - 1] }),
  }));
}

/** One of the two programs, with the images and whoever came first. It is started anew when somebody changed the graph. */
export class Side {
  readonly folder: string;
  readonly #who: Who;
  readonly #context: TestContext;
  readonly #images: string;
  #program: Program | undefined;

  constructor(context: TestContext, who: Who, images: string, folder: string) {
    this.#context = context;
    this.#who = who;
    this.#images = images;
    this.folder = join(folder, who);
    mkdirSync(this.folder);
  }

  /** Answers why the first user was refused. */
  async begin(first: User | undefined, moment: Moment): Promise<string | undefined> {
    await this.#program?.kill();
    for (const name of readdirSync(this.folder)) rmSync(join(this.folder, name));
    for (const name of FILES) copyFileSync(join(this.#images, name), join(this.folder, name));
    const program = await this.#start();
    this.#program = program;
    for (const options of nodeOptions(this.folder)) await execute(program, 'blockdev-add', options);
    const addr = { type: 'unix', data: { path: join(this.folder, 'nbd') } };
    await execute(program, 'nbd-server-start', { addr });
    return first && this.#first(program, first, moment);
  }

  async #start(): Promise<Program> {
    if (this.#who === 'theirs') {
      const monitor = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
      return Daemon.start(this.#context, this.folder, ['qemu-storage-daemon', ...monitor]);
    }
    const program = new EngineProgram();
    this.#context.after(() => program.kill());
    return program;
  }

  async #first(
    program: Program,
    { command, leaves, arguments: args }: User,
    moment: Moment,
  ): Promise<string | undefined> {
    const isThrottled = leaves === 'job' && moment === 'at work';
    const reply = await program.raw(command, {
      ...args,
      ...(isThrottled && { speed: 1 }),
      ...(moment === 'pending' && { 'auto-finalize': false }),
    });
    if (reply.error) return this.#wording(reply.error.desc);
    // Every drained section makes a throttled job go on a little.
    // One that has nothing to do is over.
    if (isThrottled) await program.raw('job-pause', { id: args['job-id'] });
    if (moment === 'ready') await program.event('BLOCK_JOB_READY');
    if (moment === 'pending') await program.event('JOB_STATUS_CHANGE', { status: 'pending' });
    return undefined;
  }

  /** What a second user hears, after which it is gone again; and whether the graph is another than before. */
  async second({ command, leaves, arguments: args }: User): Promise<{ answer: string; isChanged: boolean }> {
    const program = this.#program;
    if (!program) throw new Error('not begun');
    const names = {
      ...('job-id' in args && { 'job-id': 'second' }),
      ...(leaves === 'export' && { id: 'second', name: 'second' }),
      ...(leaves === 'job' && { speed: 1 }),
    };
    const reply = await program.raw(command, this.#placed({ ...args, ...names }));
    // A stream that is refused leaves a user of the node behind in QEMU 7.2.
    if (reply.error)
      return { answer: this.#wording(reply.error.desc), isChanged: command === 'block-stream' };
    if (leaves === 'change') return { answer: 'accepted', isChanged: true };
    if (leaves === 'export') {
      await execute(program, 'block-export-del', { id: 'second', mode: 'hard' });
      await program.event('BLOCK_EXPORT_DELETED', { id: 'second' });
      return { answer: 'accepted', isChanged: false };
    }
    return this.#endJob(program, leaves === 'created');
  }

  async #endJob(program: Program, isCreation: boolean): Promise<{ answer: string; isChanged: boolean }> {
    if (isCreation) {
      await program.event('JOB_STATUS_CHANGE', { id: 'second', status: 'concluded' });
      const jobs = (await execute(program, 'query-jobs')) as Array<{ id: string; error?: string }>;
      const error = jobs.find(({ id }) => id === 'second')?.error;
      await execute(program, 'job-dismiss', { id: 'second' });
      return {
        answer: error === undefined ? 'accepted' : this.#wording(error),
        isChanged: error === undefined,
      };
    }
    // It may be over already, for want of anything to copy.
    await program.raw('job-cancel', { id: 'second' });
    await program.event('JOB_STATUS_CHANGE', { id: 'second', status: 'null' });
    const end = program.events.findIndex(({ data }) => data?.['device'] === 'second');
    const over = end < 0 ? undefined : program.events[end];
    program.events.length = 0;
    const isChanged = over?.event === 'BLOCK_JOB_COMPLETED' && !('error' in (over.data ?? {}));
    return { answer: 'accepted', isChanged };
  }

  /** Names of files are of this side's folder. */
  #placed(args: Json): Json {
    const { options, ...rest } = args;
    const place = (from: Json, key: string): Json =>
      typeof from[key] === 'string' ? { ...from, [key]: join(this.folder, from[key]) } : from;
    return {
      ...place(rest, 'snapshot-file'),
      ...(options !== undefined && { options: place(options as Json, 'filename') }),
    };
  }

  forgetEvents(): void {
    if (this.#program) this.#program.events.length = 0;
  }

  #wording(text: string): string {
    return text.replaceAll(/#block\d+/g, '#block').replaceAll(this.folder, '.');
  }

  /** The bytes that are locked in each file, which keep other programs out. */
  locks(): Record<string, number[]> {
    return Object.fromEntries(FILES.map((name) => [name, lockedBytes(join(this.folder, name))]));
  }
}

/** The command's return value. Throws its error's description. */
async function execute(program: Program, command: string, args: Json = {}): Promise<unknown> {
  const reply = await program.raw(command, args);
  if (reply.error) throw new Error(`${command}: ${reply.error.desc}`);
  return reply.return;
}

/** Bytes of a file on which somebody has an OFD lock. */
export function lockedBytes(path: string): number[] {
  const { ino } = statSync(path);
  const bytes = new Set<number>();
  for (const line of readFileSync('/proc/locks', 'utf8').split('\n')) {
    const [, type, , , , inode, first, last] = line.split(/\s+/);
    if (type !== 'OFDLCK' || !inode?.endsWith(`:${ino}`)) continue;
    for (let byte = Number(first); byte <= Number(last); byte++) bytes.add(byte);
  }
  return [...bytes].sort((a, b) => a - b);
}
