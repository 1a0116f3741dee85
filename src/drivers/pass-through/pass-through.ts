import type { Change, ChangeGate } from '../../block/change-gate.js';
import type { ChildIo, DriverInfo, DriverInstance, IoDriver } from '../../block/driver.js';
import type { BlockStatus } from '../../block/request.js';

/** The state of a filter that shows its child as it is and lets a job stand between the guest's changes and it. */
export class PassThrough implements DriverInstance, IoDriver {
  readonly requestAlignmentBytes = 1;
  /** None: changes go straight through. Set while a drained section holds the guests, or synchronously. */
  gate: ChangeGate | undefined;
  readonly #child: () => ChildIo;

  constructor(child: () => ChildIo) {
    this.#child = child;
  }

  get io(): IoDriver {
    return this;
  }

  get lengthBytes(): number {
    return this.#child().lengthBytes;
  }

  get canWriteZeroes(): boolean {
    return true;
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    return this.#child().tryRead(offset, buffer);
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    const child = this.#child();
    if (!child.tryRead(offset, buffer)) await child.read(offset, buffer);
  }

  tryWrite(offset: number, buffer: Uint8Array): boolean {
    if (this.gate && !this.gate.isOpen(offset, buffer.length)) return false;
    return this.#child().tryWrite(offset, buffer, 0);
  }

  write(offset: number, buffer: Uint8Array, flags: number): Promise<void> {
    return this.#change({ kind: 'write', offset, lengthBytes: buffer.length, buffer, flags }, () =>
      this.#child().write(offset, buffer, flags),
    );
  }

  writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    return this.#change({ kind: 'zeroes', offset, lengthBytes, flags }, () =>
      this.#child().writeZeroes(offset, lengthBytes, flags),
    );
  }

  discard(offset: number, lengthBytes: number): Promise<void> {
    return this.#change({ kind: 'discard', offset, lengthBytes }, () =>
      this.#child().discard(offset, lengthBytes),
    );
  }

  status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    return this.#child().status(offset, lengthBytes);
  }

  allocate(offset: number, lengthBytes: number): Promise<void> {
    return this.#child().allocate(offset, lengthBytes);
  }

  tryAllocate(offset: number, lengthBytes: number): boolean {
    return this.#child().tryAllocate(offset, lengthBytes);
  }

  extend(lengthBytes: number): Promise<void> {
    return this.#child().extend(lengthBytes);
  }

  tryExtend(lengthBytes: number): boolean {
    return this.#child().tryExtend(lengthBytes);
  }

  startWriteback(offset: number, lengthBytes: number): void {
    this.#child().startWriteback(offset, lengthBytes);
  }

  flush(): Promise<void> {
    return this.#child().flush();
  }

  truncate(lengthBytes: number): Promise<void> {
    return this.#child().truncate(lengthBytes);
  }

  info(): DriverInfo {
    return {};
  }

  async close(): Promise<void> {}

  #change(change: Change, forward: () => Promise<void>): Promise<void> {
    const { gate } = this;
    if (!gate || gate.isOpen(change.offset, change.lengthBytes)) return forward();
    return gate.run(change, forward);
  }
}
