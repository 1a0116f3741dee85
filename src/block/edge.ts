import { assert } from '../base/assert.js';
import { ByteRanges } from '../base/byte-ranges.js';
import type { CancelSignal } from '../base/cancel-signal.js';
import type { ChainStatus } from './chain-status.js';
import type { ChildIo, DriverInfo } from './driver.js';
import type { BlockBackend } from './backend.js';
import type { FrozenChain } from './frozen-chain.js';
import type { Located } from './located.js';
import type { Node } from './node.js';
import { hasPermission, Permission } from './permissions.js';
import type { SnapshotAccess } from './snapshot-access.js';
import { type BlockStatus, Flag, IoRequest, withoutFlag } from './request.js';

export type EdgeParent = Node | BlockBackend;

/**
 * A use of a node by a parent: another node in a role ("file", "backing", ...), or a block backend ("root").
 * Only graph transactions change `node`, `perm` and `shared`.
 */
export class Edge implements ChildIo {
  readonly parent: EdgeParent;
  readonly role: string;
  node: Node;
  perm = 0;
  shared = 0;
  /** Jobs that rely on this link; while there are any it may not be changed. */
  frozen = 0;
  /** Of these, those of the parent's own driver: they end with it. */
  frozenByParent = 0;
  /** Of the parent's own requests that are made at once, one after the other. */
  readonly #own = new IoRequest();

  constructor(parent: EdgeParent, role: string, node: Node) {
    this.parent = parent;
    this.role = role;
    this.node = node;
  }

  /** The role as messages and queries tell it. */
  get shownRole(): string {
    return ('driver' in this.parent ? this.parent.driver.shownChildRole : undefined) ?? this.role;
  }

  get lengthBytes(): number {
    return this.node.lengthBytes;
  }

  get hasFixedLength(): boolean {
    return this.node.hasFixedLength;
  }

  takeDoubtful(): ByteRanges {
    return this.node.instance.takeDoubtful?.() ?? new ByteRanges();
  }

  tellCutOff(): void {
    if ('driver' in this.parent) this.parent.tellCutOff(this.node.filename);
  }

  driverInfo(): DriverInfo {
    return this.node.skipFilters().instance.info();
  }

  get isWritable(): boolean {
    return hasPermission(this.perm, Permission.write) || hasPermission(this.perm, Permission.writeUnchanged);
  }

  #mayGrow(): boolean {
    return hasPermission(this.perm, Permission.resize);
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    const request = this.#take('read', offset, buffer);
    try {
      return this.node.io.tryRead(request, 0, buffer.length, offset);
    } finally {
      request.end();
    }
  }

  read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.node.io.read(IoRequest.ofBuffer(buffer), 0, buffer.length, offset);
  }

  tryWrite(offset: number, buffer: Uint8Array, flags: number): boolean {
    if (flags !== Flag.none) return false;
    const request = this.#take('write', offset, buffer);
    try {
      return this.tryWritePart(request, 0, buffer.length, offset);
    } finally {
      request.end();
    }
  }

  /** What must wait has a request to itself: beside its promises that costs nothing. */
  write(offset: number, buffer: Uint8Array, flags: number): Promise<void> {
    return this.writePart(IoRequest.ofBuffer(buffer), 0, buffer.length, offset, flags);
  }

  #take(kind: 'read' | 'write', offset: number, buffer: Uint8Array): IoRequest {
    const request = this.#own;
    assert(request.lengthBytes < 0, 'a request at once begins while another is under way');
    request.setBuffer(buffer);
    return request.ask(kind, offset, buffer.length);
  }

  tryReadPart(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    return this.node.io.tryRead(request, from, lengthBytes, offset);
  }

  readPart(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    return this.node.io.read(request, from, lengthBytes, offset);
  }

  tryWritePart(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    this.#assertWritable();
    return this.node.io.tryWrite(request, from, lengthBytes, offset, this.#mayGrow());
  }

  writePart(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    this.#assertWritable();
    return this.node.io.write(request, from, lengthBytes, offset, flags, this.#mayGrow());
  }

  /** A node that ignores discards gives no space away on behalf of its parent node; users may still ask it to. */
  writeZeroes(offset: number, lengthBytes: number, asked: number, signal?: CancelSignal): Promise<void> {
    this.#assertWritable();
    const keeps = this.role !== 'root' && this.node.modes.discard === 'ignore';
    const flags = keeps ? withoutFlag(asked, Flag.mayUnmap) : asked;
    return this.node.io.writeZeroes(offset, lengthBytes, flags, this.#mayGrow(), signal);
  }

  discard(offset: number, lengthBytes: number, signal?: CancelSignal): Promise<void> {
    this.#assertWritable();
    return this.node.io.discard(offset, lengthBytes, signal);
  }

  flush(): Promise<void> {
    return this.node.io.flush();
  }

  locate(offset: number, lengthBytes: number, wanted?: () => void): Promise<Located> {
    return this.node.io.locate(offset, lengthBytes, wanted);
  }

  allocatedBytes(): number | undefined {
    return this.node.allocatedBytes();
  }

  status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    return this.node.io.status(offset, lengthBytes);
  }

  chainStatus(offset: number, lengthBytes: number): ChainStatus | Promise<ChainStatus> {
    return this.node.statusThroughChain(offset, lengthBytes);
  }

  get snapshotAccess(): SnapshotAccess | undefined {
    return this.node.instance.snapshotAccess;
  }

  copyOnRead(offset: number, lengthBytes: number, last?: Pick<FrozenChain, 'bottom'>): Promise<void> {
    const node = this.node.skipFilters();
    const inside = Math.min(lengthBytes, node.lengthBytes - offset);
    return inside > 0 ? node.io.copyOnRead(offset, inside, last?.bottom) : Promise.resolve();
  }

  truncate(lengthBytes: number): Promise<void> {
    assert(this.#mayGrow(), () => `${this.role} child '${this.node.name}' resized without permission`);
    return this.node.io.truncate(lengthBytes);
  }

  allocate(offset: number, lengthBytes: number): Promise<void> {
    this.#assertWritable();
    return this.node.io.allocate(offset, lengthBytes, this.#mayGrow());
  }

  tryAllocate(offset: number, lengthBytes: number): boolean {
    this.#assertWritable();
    return this.node.io.tryAllocate(offset, lengthBytes, this.#mayGrow());
  }

  extend(lengthBytes: number): Promise<void> {
    this.#assertWritable();
    return this.node.io.extend(lengthBytes, this.#mayGrow());
  }

  tryExtend(lengthBytes: number): boolean {
    this.#assertWritable();
    return this.node.io.tryExtend(lengthBytes, this.#mayGrow());
  }

  get hasSpaceAhead(): boolean {
    return this.node.instance.hasSpaceAhead === true;
  }

  announce(event: string): Promise<void> | undefined {
    return this.node.instance.announce?.(event);
  }

  get isListening(): boolean {
    return this.node.instance.announce !== undefined;
  }

  get compression(): { isPossible: boolean; clusterBytes: number; driverName: string } {
    const { driver } = this.node;
    const { clusterSizeBytes: clusterBytes = 1 } = this.node.skipFilters().instance.info();
    return { isPossible: driver.compresses === true, clusterBytes, driverName: driver.name };
  }

  startWriteback(offset: number, lengthBytes: number): void {
    this.node.instance.io?.startWriteback?.(offset, lengthBytes);
  }

  #assertWritable(): void {
    assert(this.isWritable, () => `${this.role} child '${this.node.name}' written without permission`);
  }
}
