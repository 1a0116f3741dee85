import { type ChildProcess, spawn } from 'node:child_process';
import { Socket } from 'node:net';
import { constants } from 'node:os';
import { deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import type { Json } from '../../block/driver.js';
import { environmentInside, findTool } from './program.js';

/** The descriptor of what is open as long as a livedisk serves the guest, in the child. */
const LIFE_FD = 3;
/**
 * A shell is the parent of the guest's program, so that that lives on while one livedisk takes the place of another one. When
 * none is left that has the other end of LIFE_FD, the program gets SIGTERM, and so it does when the shell is gone. What it
 * ends with is told there, too: to a process that is not the shell's parent.
 */
const KEEPER = `exec 4<&0
"$@" <&4 4<&- ${LIFE_FD}<&- & guest=$!
exec 4<&-
{ read -r _ <&${LIFE_FD}; kill -TERM $guest; } 2>/dev/null & watch=$!
wait $guest; status=$?
kill $watch 2>/dev/null
trap '' PIPE; { echo $status >&${LIFE_FD}; } 2>/dev/null
exit $status`;
/** What a shell adds to the number of the signal that a child ended with. */
const SIGNALLED = 128;

/** How it ended. */
export interface GuestEnd {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** What another process needs to be its keeper. A type alias: it is JSON. */
export type PassedProcess = { [key: string]: Json; program: string; group: number };

/** The program that runs the guest. It gets SIGTERM when no process is left that serves it, however that comes. */
export interface GuestProcess {
  readonly program: string;
  readonly ended: Promise<GuestEnd>;
  readonly hasEnded: boolean;
  kill(): void;
  /** For AdoptedProcess, with the descriptor by which the program knows that it is served. */
  passed(): { data: PassedProcess; lifeFd: number };
}

/** One that this process has started. */
export class StartedProcess implements GuestProcess {
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
    const asked = [findTool('setpriv'), '--pdeathsig', 'TERM', '--', program, ...words];
    // A session of its own: keys of the terminal that are signals come here, and once.
    this.#child = spawn(findTool('sh'), ['-c', KEEPER, 'livedisk-machine', ...asked], {
      stdio: [stdin, 'inherit', 'inherit', 'pipe'],
      detached: true,
      env: environmentInside(),
    });
    this.#child.once('error', (error) => {
      process.stderr.write(`${error.message}\n`);
      ended.resolve({ status: 1, signal: null });
    });
    this.#child.once('exit', (status, signal) => ended.resolve(endOf(status, signal)));
    this.#life()?.on('error', () => undefined);
  }

  #life(): (Socket & { _handle?: { fd?: number } }) | undefined {
    return this.#child.stdio[LIFE_FD] as Socket | undefined;
  }

  get hasEnded(): boolean {
    return this.#end !== undefined;
  }

  passed(): { data: PassedProcess; lifeFd: number } {
    const lifeFd = this.#life()?._handle?.fd;
    const { pid } = this.#child;
    if (lifeFd === undefined || pid === undefined) throw new BlockError('closed', 'The guest has ended');
    return { data: { program: this.program, group: pid }, lifeFd };
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
    killGroup(this.#child.pid);
  }
}

/** One that another process has started. */
export class AdoptedProcess implements GuestProcess {
  readonly program: string;
  readonly ended: Promise<GuestEnd>;
  readonly #group: number;
  readonly #life: Socket;
  readonly #lifeFd: number;
  #hasEnded = false;

  /** `hasShutDown`: it said that it ends, which counts where its status has gone to the process before. */
  constructor({ program, group }: PassedProcess, lifeFd: number, hasShutDown: () => boolean) {
    this.program = program;
    this.#group = group;
    this.#lifeFd = lifeFd;
    this.#life = new Socket({ fd: lifeFd });
    let told = '';
    this.#life.on('data', (chunk: Buffer) => (told += chunk.toString()));
    this.#life.on('error', () => undefined);
    const ended = deferred<GuestEnd>();
    this.#life.once('close', () => {
      this.#hasEnded = true;
      const status = /^(\d+)\n/.exec(told)?.[1];
      ended.resolve(endOf(status === undefined ? (hasShutDown() ? 0 : null) : Number(status), null));
    });
    this.ended = ended.promise;
  }

  get hasEnded(): boolean {
    return this.#hasEnded;
  }

  passed(): { data: PassedProcess; lifeFd: number } {
    return { data: { program: this.program, group: this.#group }, lifeFd: this.#lifeFd };
  }

  kill(): void {
    killGroup(this.#group);
  }
}

/** The shell, and all that it has started. */
function killGroup(group: number | undefined): void {
  if (group === undefined) return;
  try {
    process.kill(-group, 'SIGKILL');
  } catch {
    // It has ended.
  }
}

function endOf(status: number | null, signal: NodeJS.Signals | null): GuestEnd {
  if (status === null || status <= SIGNALLED) return { status, signal };
  const [name] = Object.entries(constants.signals).find(([, number]) => number === status - SIGNALLED) ?? [];
  return name === undefined ? { status, signal } : { status: null, signal: name as NodeJS.Signals };
}

export function endText(program: string, { status, signal }: GuestEnd): string {
  if (status === null && signal === null) return `${program} has ended without a word`;
  return `${program} has ended with ${signal === null ? `status ${status}` : `signal ${signal}`}`;
}
