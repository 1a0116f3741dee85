import { Notifier } from '../../base/async.js';
import { BlockError, errnoOf, errnoText } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import { withoutPermissions } from '../../block/permissions.js';
import type { Host } from '../../host/host.js';

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
}

/** A disk under exercise, and its asynchronous requests. */
export class IoSession {
  readonly backend: BlockBackend;
  readonly output: IoOutput;
  readonly host: Host | undefined;
  readonly #acquire: ((perm: number) => Promise<void>) | undefined;
  /** `quit` was given. */
  hasQuit = false;
  #pending = 0;
  readonly #settled = new Notifier();

  /** `acquire`: lets the backend do more (permission bits); without it, it may do what it may at first. */
  constructor(
    backend: BlockBackend,
    output: IoOutput,
    host?: Host,
    acquire?: (perm: number) => Promise<void>,
  ) {
    this.backend = backend;
    this.output = output;
    this.host = host;
    this.#acquire = acquire;
  }

  /** Before a command that needs permissions (bits); they stay. Errors: kind busy when somebody denies them; permission. */
  async acquire(perm: number): Promise<void> {
    if (withoutPermissions(perm, this.backend.perm) === 0) return;
    if (this.#acquire) await this.#acquire(perm);
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
