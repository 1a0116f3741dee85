import { type Deferred, deferred, Notifier } from '../../base/async.js';
import { errnoError } from '../../base/error.js';
import { BLKDEBUG_EVENTS } from '../../schema/blkdebug-events.js';

/** Requests that stop at an event until they are told to go on. A breakpoint stops one request, then it is gone. */
export class Breakpoints {
  /** Told of each request that stops and goes on. */
  onSuspended: (tag: string) => void = () => undefined;
  onResumed: (tag: string) => void = () => undefined;
  readonly #set: Array<{ event: string; tag: string }> = [];
  readonly #suspended: Array<{ tag: string; gate: Deferred<void> }> = [];
  readonly #changed = new Notifier();

  /** Those that nobody has come to yet. */
  get waiting(): Array<{ event: string; tag: string }> {
    return [...this.#set];
  }

  /** Errors: not-found, for an event that nobody announces. */
  add(event: string, tag: string): void {
    if (!BLKDEBUG_EVENTS.includes(event)) throw errnoError('ENOENT', 'Could not set breakpoint');
    this.#set.push({ event, tag });
  }

  /** Takes away breakpoints of that tag and resumes what they stopped. Errors: not-found. */
  remove(tag: string): void {
    const before = this.#set.length;
    for (let i = before - 1; i >= 0; i--) if (this.#set[i]?.tag === tag) this.#set.splice(i, 1);
    let found = this.#set.length < before;
    while (this.#wake(tag)) found = true;
    if (!found) throw errnoError('ENOENT', `Could not remove breakpoint ${tag}`);
  }

  /** The request stopped longest under that tag goes on. Errors: not-found. */
  resume(tag: string): void {
    if (!this.#wake(tag)) throw errnoError('ENOENT', 'Could not resume request');
  }

  resumeAll(): void {
    for (const { tag } of [...this.#suspended]) this.#wake(tag);
  }

  isSuspended(tag: string): boolean {
    return this.#suspended.some((request) => request.tag === tag);
  }

  /** Until a request has stopped under that tag. */
  whenSuspended(tag: string): Promise<void> {
    return this.#changed.until(() => this.isSuspended(tag));
  }

  /** The request that announces the event stops here, if a breakpoint says so. */
  hit(event: string): Promise<void> | undefined {
    const index = this.#set.findIndex((breakpoint) => breakpoint.event === event);
    if (index < 0) return undefined;
    const tag = this.#set[index]?.tag ?? '';
    this.#set.splice(index, 1);
    const gate = deferred();
    this.#suspended.push({ tag, gate });
    this.onSuspended(tag);
    this.#changed.notify();
    return gate.promise;
  }

  #wake(tag: string): boolean {
    const index = this.#suspended.findIndex((request) => request.tag === tag);
    if (index < 0) return false;
    const [request] = this.#suspended.splice(index, 1);
    this.onResumed(tag);
    request?.gate.resolve();
    return true;
  }
}
