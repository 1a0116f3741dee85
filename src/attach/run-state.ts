import type { CancelSignal } from '../base/cancel-signal.js';
import { Notifier } from '../base/async.js';

export type RunStatus =
  'prelaunch' | 'inmigrate' | 'running' | 'paused' | 'shutdown' | 'io-error' | 'save-vm' | 'restore-vm';

/** Whether the guest's devices do I/O. */
export class RunState {
  #status: RunStatus;
  /** In inmigrate: what to do once the machine's state has come. */
  #autostart: boolean;
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

  get isRunning(): boolean {
    return this.#status === 'running';
  }

  /** The state has changed to not running; the caller drains. */
  stop(why: 'paused' | 'save-vm' | 'restore-vm' = 'paused'): boolean {
    if (this.#status === 'inmigrate') this.#autostart = false;
    if (this.#status !== 'running') return false;
    this.#set(why);
    this.#emit('STOP');
    return true;
  }

  /** In inmigrate it is only remembered. */
  resume(): void {
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
    if (['paused', 'io-error', 'shutdown', 'restore-vm'].includes(this.#status)) this.#set('prelaunch');
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

  /** Resolves when the guest runs, or `orElse` holds when wake() was called. */
  async running(orElse: () => boolean, signal?: CancelSignal): Promise<void> {
    await this.#changed.until(() => this.isRunning || orElse(), signal);
  }

  /** What others wait for besides a running guest has come. */
  wake(): void {
    this.#changed.notify();
  }

  #set(status: RunStatus): void {
    this.#status = status;
    this.#changed.notify();
  }
}
