import { assert } from '../../base/assert.js';
import { Notifier } from '../../base/async.js';
import { BlockError, errnoOf, errnoText } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import { withoutPermissions } from '../../block/permissions.js';
import type { Graph } from '../../block/graph.js';
import type { Host } from '../../host/host.js';

const MISALIGNED_BYTES = 16;

/** Where text goes; each call is whole lines. */
export interface IoOutput {
  readonly print: (text: string) => void;
  /** What qemu-io writes to standard error. */
  readonly error: (text: string) => void;
  /** Sends the program itself a signal, by its name or number; absent where the program is not the exerciser's own. */
  readonly raise?: (signal: NodeJS.Signals | number) => void;
}

export interface IoOptions {
  /** Default: print. */
  error?: (text: string) => void;
  /** Needed by `write -s FILE`. */
  host?: Host;
  /** Needed by `reopen`. */
  graph?: Graph;
  /** The memory of requests is not where O_DIRECT could use it. */
  isMisaligned?: boolean;
}

/** Where a session's disks come from, when it may open and close them: the exerciser's own. */
export interface DiskSource {
  /** What `open` with these words opens, when it is called. Errors, of both: BlockError, as it is to be told; UsageFailure. */
  prepare(words: readonly string[]): () => Promise<OpenDisk>;
}

export interface OpenDisk {
  readonly backend: BlockBackend;
  /** See IoSession. */
  acquire(perm: number): Promise<void>;
  close(): Promise<void>;
}

/** A disk under exercise, and its asynchronous requests. */
export class IoSession {
  /** Absent where there is one disk, and it stays. */
  readonly source: DiskSource | undefined;
  readonly output: IoOutput;
  readonly host: Host | undefined;
  readonly graph: Graph | undefined;
  readonly #isMisaligned: boolean;
  #backend: BlockBackend | undefined;
  #disk: OpenDisk | undefined;
  /** `quit` was given. */
  hasQuit = false;
  #pending = 0;
  readonly #settled = new Notifier();

  /** Of one disk, which may do what it may at first; or of a source's, none of which is open yet. */
  constructor(disks: BlockBackend | DiskSource, output: IoOutput, options: IoOptions = {}) {
    if ('prepare' in disks) this.source = disks;
    else this.#backend = disks;
    this.output = output;
    this.host = options.host;
    this.graph = options.graph;
    this.#isMisaligned = options.isMisaligned ?? false;
  }

  /** Memory of a request, whatever it holds. */
  newBuffer(lengthBytes: number): Buffer<ArrayBuffer> {
    if (!this.#isMisaligned) return Buffer.allocUnsafe(lengthBytes);
    return Buffer.allocUnsafeSlow(lengthBytes + MISALIGNED_BYTES).subarray(MISALIGNED_BYTES);
  }

  /** The disk is one of the source's. */
  get ownsDisk(): boolean {
    return this.#disk !== undefined;
  }

  get hasDisk(): boolean {
    return this.#backend !== undefined;
  }

  get backend(): BlockBackend {
    assert(this.#backend, 'a disk is open');
    return this.#backend;
  }

  use(disk: OpenDisk): void {
    assert(!this.hasDisk, 'no disk is open');
    this.#disk = disk;
    this.#backend = disk.backend;
  }

  /** Once its requests have reported. */
  async close(): Promise<void> {
    await this.drain();
    const disk = this.#disk;
    if (!disk) return;
    this.#disk = undefined;
    this.#backend = undefined;
    await disk.close();
  }

  /** Before a command that needs permissions (bits); they stay. Errors: kind busy when somebody denies them; permission. */
  async acquire(perm: number): Promise<void> {
    if (withoutPermissions(perm, this.backend.perm) === 0) return;
    if (this.#disk) await this.#disk.acquire(perm);
    else if (!this.backend.isWritable) throw new BlockError('permission', 'Block node is read-only');
  }

  /** Starts an aio_ command's request; it reports by itself. */
  launch(request: () => Promise<void>): void {
    this.#pending++;
    void request()
      .catch((error: unknown) => this.output.print(`${errorText(error)}\n`))
      .then(() => {
        this.#pending--;
        this.#settled.notify();
      });
  }

  /** Waits until every aio_ request has reported. */
  async drain(): Promise<void> {
    await this.#settled.until(() => this.#pending === 0);
  }

  /** Seconds that `request` took. */
  async time(request: () => Promise<void>): Promise<number> {
    const { clock } = this.backend;
    const started = clock.nowMs();
    await request();
    return (clock.nowMs() - started) / 1000;
  }
}

/** A failure that ends a command, told on standard output as `message`. */
export class CommandFailure extends Error {
  /** Told on standard error instead. */
  readonly onError: boolean;

  constructor(message: string, onError = false) {
    super(message);
    this.onError = onError;
  }
}

/** The arguments were not what the command takes: its one-line help is printed. */
export class UsageFailure extends Error {
  /** For standard error, before the help. */
  readonly reason: string;

  constructor(reason = '') {
    super('usage');
    this.reason = reason;
  }
}

/** strerror(3) of what went wrong, as qemu-io words failed requests. */
export function requestError(error: unknown): string {
  if (!(error instanceof BlockError)) throw error;
  return errnoText(errnoOf(error));
}

function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
