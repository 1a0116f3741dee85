import type { ChildIo, PreparedReopening, Reopening } from '../../block/driver.js';
import type { ObjectRegistry } from '../../block/objects/object-registry.js';
import type { ThrottleGroup } from '../../block/objects/throttle-group.js';
import type { ThrottledDirection, ThrottleMember } from '../../block/objects/throttling.js';
import type { IoRequest } from '../../block/request.js';
import { PassThrough } from '../pass-through/pass-through.js';

/**
 * A member of a throttle group. In a drained section its requests do not wait: who drains must not wait for a pace, and
 * what they take is counted. Zeroing and discarding count as writes.
 */
export class ThrottleNode extends PassThrough {
  readonly #objects: ObjectRegistry;
  #group: ThrottleGroup;
  #member: ThrottleMember;
  #unuse: () => void;
  #isDrained = false;

  constructor(child: () => ChildIo, group: ThrottleGroup, objects: ObjectRegistry) {
    super(child);
    this.#objects = objects;
    this.#group = group;
    this.#member = group.join();
    this.#unuse = group.use();
  }

  override tryRead(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    return this.#member.isFree && super.tryRead(request, from, lengthBytes, offset);
  }

  override async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    await this.#enter('read', lengthBytes, request);
    return super.read(request, from, lengthBytes, offset);
  }

  override tryWrite(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    return this.#member.isFree && super.tryWrite(request, from, lengthBytes, offset);
  }

  override async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    await this.#enter('write', lengthBytes, request);
    return super.write(request, from, lengthBytes, offset, flags);
  }

  override async writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    await this.#enter('write', lengthBytes);
    return super.writeZeroes(offset, lengthBytes, flags);
  }

  override async discard(offset: number, lengthBytes: number): Promise<void> {
    await this.#enter('write', lengthBytes);
    return super.discard(offset, lengthBytes);
  }

  async #enter(direction: ThrottledDirection, lengthBytes: number, request?: IoRequest): Promise<void> {
    const wait = this.#member.enter(direction, lengthBytes);
    if (!wait) return;
    const generation = request?.generation;
    await wait;
    if (request && generation !== undefined) request.assertIs(generation);
  }

  drainBegin(): void {
    this.#isDrained = true;
    this.#member.release();
  }

  drainEnd(): void {
    this.#isDrained = false;
    this.#member.resume();
  }

  /** What waits goes on to the child, where it fails. */
  cancelInFlight(): void {
    this.#member.leave();
  }

  /** Another group, perhaps. Errors: not-found. */
  async prepareReopen({ settings }: Reopening): Promise<PreparedReopening> {
    const group = this.#objects.throttleGroup((settings as { 'throttle-group'?: string })['throttle-group']);
    const unuse = group.use();
    return { commit: () => this.#change(group, unuse), abort: unuse };
  }

  #change(group: ThrottleGroup, unuse: () => void): void {
    const old = { member: this.#member, unuse: this.#unuse };
    this.#unuse = unuse;
    if (group !== this.#group) {
      this.#group = group;
      this.#member = group.join();
      if (this.#isDrained) this.#member.release();
      old.member.leave();
    }
    old.unuse();
  }

  override async close(): Promise<void> {
    this.#member.leave();
    this.#unuse();
  }
}
