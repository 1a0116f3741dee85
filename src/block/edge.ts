import { assert } from '../base/assert.js';
import type { ChildIo } from './driver.js';
import type { BlockBackend } from './backend.js';
import type { Located } from './located.js';
import type { Node } from './node.js';
import type { Payload } from './payload.js';
import { hasPermission, Permission } from './permissions.js';
import { type BlockStatus, Flag, withoutFlag } from './request.js';

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

  constructor(parent: EdgeParent, role: string, node: Node) {
    this.parent = parent;
    this.role = role;
    this.node = node;
  }

  get lengthBytes(): number {
    return this.node.lengthBytes;
  }

  get isWritable(): boolean {
    return hasPermission(this.perm, Permission.write) || hasPermission(this.perm, Permission.writeUnchanged);
  }

  #mayGrow(): boolean {
    return hasPermission(this.perm, Permission.resize);
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    return this.node.io.tryRead(offset, buffer);
  }

  read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.node.io.read(offset, buffer);
  }

  tryWrite(offset: number, buffer: Uint8Array, flags: number): boolean {
    this.#assertWritable();
    return this.node.io.tryWrite(offset, buffer, flags, this.#mayGrow());
  }

  write(offset: number, buffer: Uint8Array, flags: number): Promise<void> {
    this.#assertWritable();
    return this.node.io.write(offset, buffer, flags, this.#mayGrow());
  }

  writePayload(offset: number, payload: Payload, flags: number): Promise<void> {
    this.#assertWritable();
    return this.node.io.writePayload(offset, payload, flags, this.#mayGrow());
  }

  /** A node that ignores discards gives no space away on behalf of its parent node; users may still ask it to. */
  writeZeroes(offset: number, lengthBytes: number, asked: number): Promise<void> {
    this.#assertWritable();
    const keeps = this.role !== 'root' && this.node.modes.discard === 'ignore';
    const flags = keeps ? withoutFlag(asked, Flag.mayUnmap) : asked;
    return this.node.io.writeZeroes(offset, lengthBytes, flags, this.#mayGrow());
  }

  discard(offset: number, lengthBytes: number): Promise<void> {
    this.#assertWritable();
    return this.node.io.discard(offset, lengthBytes);
  }

  flush(): Promise<void> {
    return this.node.io.flush();
  }

  locate(offset: number, lengthBytes: number): Promise<Located> {
    return this.node.io.locate(offset, lengthBytes);
  }

  allocatedBytes(): number | undefined {
    return this.node.allocatedBytes();
  }

  status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    return this.node.io.status(offset, lengthBytes);
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

  announce(event: string): Promise<void> | undefined {
    return this.node.instance.announce?.(event);
  }

  get isListening(): boolean {
    return this.node.instance.announce !== undefined;
  }

  startWriteback(offset: number, lengthBytes: number): void {
    this.node.instance.io?.startWriteback?.(offset, lengthBytes);
  }

  #assertWritable(): void {
    assert(this.isWritable, () => `${this.role} child '${this.node.name}' written without permission`);
  }
}
