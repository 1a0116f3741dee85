import type { ByteRanges } from '../../base/byte-ranges.js';
import type { Change, ChangeGate } from '../../block/change-gate.js';
import type { ChildIo, DriverInfo, DriverInstance, IoDriver } from '../../block/driver.js';
import type { BlockStatus, IoRequest } from '../../block/request.js';

/** The state of a filter that shows its child as it is and lets a job stand between the guest's changes and it. */
export class PassThrough implements DriverInstance, IoDriver {
  readonly requestAlignmentBytes: number = 1;
  readonly honoursFua = true;
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

  get hasSpaceAhead(): boolean {
    return this.#child().hasSpaceAhead === true;
  }

  get canWriteZeroes(): boolean {
    return true;
  }

  tryRead(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    return this.#child().tryReadPart(request, from, lengthBytes, offset);
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const child = this.#child();
    if (child.tryReadPart(request, from, lengthBytes, offset)) return;
    await child.readPart(request, from, lengthBytes, offset);
  }

  tryWrite(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    if (this.gate && !this.gate.isOpen(offset, lengthBytes)) return false;
    return this.#child().tryWritePart(request, from, lengthBytes, offset);
  }

  async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    const { gate } = this;
    const { generation } = request;
    const forward = (): Promise<void> => {
      request.assertIs(generation);
      return this.#child().writePart(request, from, lengthBytes, offset, flags);
    };
    if (!gate || gate.isOpen(offset, lengthBytes)) return forward();
    // Others than the child will look at it.
    await request.stabilise();
    request.assertIs(generation);
    const buffer = request.gather(from, lengthBytes);
    await gate.run({ kind: 'write', offset, lengthBytes, buffer, flags }, forward);
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

  takeDoubtful(): ByteRanges {
    return this.#child().takeDoubtful();
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
