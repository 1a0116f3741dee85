import { assert } from '../base/assert.js';
import { Notifier } from '../base/async.js';
import type { CancelSignal } from '../base/cancel-signal.js';
import { BlockError } from '../base/error.js';

/** QEMU's states of a machine that can occur where no processor runs. */
export type RunStatus =
  | 'prelaunch'
  | 'inmigrate'
  | 'running'
  | 'paused'
  | 'shutdown'
  | 'io-error'
  | 'finish-migrate'
  | 'postmigrate'
  | 'save-vm'
  | 'restore-vm';

/** What becomes of the machine when it is reset, or shut down. */
export interface RunActions {
  reboot: 'reset' | 'shutdown';
  shutdown: 'poweroff' | 'pause';
}

/** Which status follows which. */
const NEXT: { readonly [status in RunStatus]: readonly RunStatus[] } = {
  prelaunch: ['running', 'finish-migrate'],
  inmigrate: ['running', 'paused', 'prelaunch', 'shutdown', 'io-error', 'postmigrate'],
  running: ['paused', 'shutdown', 'io-error', 'finish-migrate', 'save-vm', 'restore-vm'],
  paused: ['running', 'prelaunch', 'finish-migrate'],
  shutdown: ['prelaunch', 'finish-migrate'],
  'io-error': ['running', 'prelaunch', 'finish-migrate'],
  'finish-migrate': ['running', 'paused', 'prelaunch', 'shutdown', 'io-error', 'restore-vm', 'postmigrate'],
  postmigrate: ['running', 'prelaunch', 'paused'],
  'save-vm': ['running'],
  'restore-vm': ['running', 'prelaunch', 'finish-migrate'],
};

/** A guest that asks for nothing; its disks are here, or may be read. */
const AT_REST: ReadonlySet<RunStatus> = new Set(['prelaunch', 'paused', 'shutdown', 'inmigrate']);

/** Whether the guest's devices do I/O. */
export class RunState {
  #status: RunStatus;
  /** What it was before its state went to another machine. */
  #before: RunStatus | undefined;
  /** In inmigrate: what to do once the machine's state has come. */
  #autostart: boolean;
  /** Who runs the guest stops it, and may ask for something itself meanwhile. */
  servesStopped = false;
  readonly #changed = new Notifier();
  readonly #emit: (event: 'STOP' | 'RESUME') => void;

  constructor(initial: { stopped: boolean; incoming: boolean }, emit: (event: 'STOP' | 'RESUME') => void) {
    this.#status = initial.incoming ? 'inmigrate' : initial.stopped ? 'prelaunch' : 'running';
    this.#autostart = !initial.stopped;
    this.#emit = emit;
  }

  get status(): RunStatus {
    return this.#status;
  }

  /** What it was before the process ended without saying so; nobody hears of it. */
  restore(status: RunStatus): void {
    assert(this.#status === 'prelaunch', () => `${this.#status} is no state to begin anew in`);
    this.#status = status;
    this.#changed.notify();
  }

  get isRunning(): boolean {
    return this.#status === 'running';
  }

  /** Whether requests of the guest's are done; else they wait. */
  get isServing(): boolean {
    return this.isRunning || (this.servesStopped && AT_REST.has(this.#status));
  }

  /** The state has changed to not running; the caller drains. */
  stop(status: Extract<RunStatus, 'paused' | 'shutdown' | 'save-vm' | 'restore-vm'> = 'paused'): boolean {
    if (this.#status === 'inmigrate') this.#autostart = false;
    if (this.#status !== 'running') return false;
    this.#set(status);
    this.#emit('STOP');
    return true;
  }

  /** Errors: kind invalid, in QEMU's words, in a state that cannot go on. */
  assertMayResume(): void {
    if (this.#status === 'shutdown')
      throw new BlockError('invalid', 'Resetting the Virtual Machine is required');
    if (this.#status === 'finish-migrate') throw new BlockError('invalid', 'Migration is not finalized yet');
  }

  /** In inmigrate it is only remembered. Errors: as assertMayResume. */
  resume(): void {
    this.assertMayResume();
    if (this.#status === 'inmigrate') {
      this.#autostart = true;
      return;
    }
    if (this.#status === 'running') return;
    this.#set('running');
    this.#emit('RESUME');
  }

  /** The machine begins anew; a stopped one waits for its start. */
  reset(): void {
    if (['paused', 'io-error', 'shutdown', 'postmigrate', 'restore-vm'].includes(this.#status))
      this.#set('prelaunch');
  }

  get startsAfterMigration(): boolean {
    return this.#autostart;
  }

  /** An I/O error stopped the guest (rerror/werror=stop). */
  stopForError(): void {
    if (this.#status !== 'running') return;
    this.#set('io-error');
    this.#emit('STOP');
  }

  /**
   * The guest stops, if it ran, and what it was is what another machine will go on with. The caller drains.
   * Errors: busy while a snapshot is taken.
   */
  finishMigrate(): RunStatus {
    const before = this.#status;
    if (!NEXT[before].includes('finish-migrate'))
      throw new BlockError('busy', `The machine cannot be moved in state '${before}'`);
    this.#before = before;
    this.#set('finish-migrate');
    if (before === 'running') this.#emit('STOP');
    return before;
  }

  /** No other machine has taken the state: on as before; `mayRun` false: but stopped, should it have run. */
  returnFromMigrate(mayRun = true): void {
    const before = this.#before;
    assert(before !== undefined, 'a machine that was stopped to be moved');
    this.#before = undefined;
    this.#set(before === 'running' && !mayRun ? 'paused' : before);
    if (this.isRunning) this.#emit('RESUME');
  }

  /** Another machine goes on. */
  postMigrate(): void {
    this.#set('postmigrate');
  }

  /** What a machine becomes to which another's state has come: it runs if that one did and nobody has said else. */
  arrivesAs(there: RunStatus): RunStatus {
    if (there !== 'running') return there;
    return this.#autostart ? 'running' : 'paused';
  }

  /** The state of another machine has come. */
  arrive(status: RunStatus): void {
    assert(this.#status === 'inmigrate', () => `${this.#status} is no state to wait in`);
    this.#set(status);
    if (this.isRunning) this.#emit('RESUME');
  }

  /** Resolves when `condition` holds, looked at again when the status is another one or wake() was called. Errors: ECANCELED. */
  async until(condition: () => boolean, signal?: CancelSignal): Promise<void> {
    await this.#changed.until(condition, signal);
  }

  /** Resolves when the status is another one, or wake() was called. */
  change(): Promise<void> {
    return this.#changed.wait();
  }

  /** What others wait for besides a running guest has come. */
  wake(): void {
    this.#changed.notify();
  }

  #set(status: RunStatus): void {
    assert(NEXT[this.#status].includes(status), () => `${status} does not follow ${this.#status}`);
    this.#status = status;
    this.#changed.notify();
  }
}
