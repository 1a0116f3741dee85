import { type ChildProcess, spawn } from 'node:child_process';
import type { Duplex } from 'node:stream';
import { deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import type { HostClock } from '../../host/host.js';
import { QmpClient } from '../../wire/qmp/client.js';
import { ChildSocket } from './child-socket.js';
import { environmentInside, findTool } from './program.js';

/** The descriptor of its monitor, in the child. */
export const MONITOR_FD = 3;
/** Until it says that it is there; a loaded machine takes a while. */
const GREETING_MS = 120_000;

/** How it ended. */
export interface GuestEnd {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** The program that runs the guest. It gets SIGTERM when this process is gone, however that comes. */
export class GuestProcess {
  readonly program: string;
  readonly ended: Promise<GuestEnd>;
  readonly #child: ChildProcess;
  #end: GuestEnd | undefined;

  /** `words`: its command line. `hasTerminal`: standard input is its own. Errors: not-found for what starts it. */
  constructor(program: string, words: readonly string[], { hasTerminal }: { hasTerminal: boolean }) {
    this.program = program;
    const stdin = hasTerminal ? 'inherit' : 'ignore';
    const ended = deferred<GuestEnd>();
    this.ended = ended.promise.then((end) => (this.#end = end));
    // A session of its own: keys of the terminal that are signals come here, and once.
    this.#child = spawn(findTool('setpriv'), ['--pdeathsig', 'TERM', '--', program, ...words], {
      stdio: [stdin, 'inherit', 'inherit', 'pipe'],
      detached: true,
      env: environmentInside(),
    });
    this.#child.once('error', (error) => {
      process.stderr.write(`${error.message}\n`);
      ended.resolve({ status: 1, signal: null });
    });
    this.#child.once('exit', (status, signal) => ended.resolve({ status, signal }));
  }

  get hasEnded(): boolean {
    return this.#end !== undefined;
  }

  /** Its monitor. Errors: those of QmpClient.over. */
  connect(clock: HostClock): Promise<QmpClient> {
    const socket = new ChildSocket(this.#child.stdio[MONITOR_FD] as Duplex);
    return QmpClient.over(socket, clock, { timeoutMs: GREETING_MS });
  }

  /** What its start needs. Errors: io when it ends before that is done; those of `work`. */
  async starting<T>(work: Promise<T>): Promise<T> {
    const early = this.ended.then((end) => {
      throw new BlockError('io', `the machine has not started: ${endText(this.program, end)}`);
    });
    early.catch(() => undefined);
    try {
      return await Promise.race([work, early]);
    } catch (error) {
      // Its monitor goes a moment before it does.
      if (error instanceof BlockError && error.kind === 'closed') return await early;
      throw error;
    }
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}

export function endText(program: string, { status, signal }: GuestEnd): string {
  return `${program} has ended with ${signal === null ? `status ${status}` : `signal ${signal}`}`;
}
