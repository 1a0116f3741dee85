import { assert } from './assert.js';
import { isZero } from './zero.js';

const NOTHING = new Uint8Array(0);

/**
 * Memory in pieces, one behind another, that data is read into or written from. Positions count from `start` in the
 * first piece, so that who moves a part of it hands on numbers and cuts nothing.
 */
export class IoVector {
  /** Never empty while it is used; most have one piece. */
  readonly buffers: Uint8Array[] = [];
  /** Where in the first buffer position 0 is. */
  start = 0;

  /** All of one buffer. */
  static of(buffer: Uint8Array): IoVector {
    const vector = new IoVector();
    vector.setBuffer(buffer);
    return vector;
  }

  setBuffer(buffer: Uint8Array, start = 0): void {
    if (this.buffers.length > 1) this.buffers.length = 1;
    this.buffers[0] = buffer;
    this.start = start;
  }

  setBuffers(buffers: readonly Uint8Array[], start = 0): void {
    this.buffers.length = 0;
    for (const buffer of buffers) this.buffers.push(buffer);
    this.start = start;
  }

  /** Keeps no memory alive, and fails whoever uses it. */
  clearBuffers(): void {
    this.setBuffer(NOTHING);
  }

  get hasNoMemory(): boolean {
    return this.buffers.every(({ length }) => length === 0);
  }

  /** A stretch that lies in one piece, as a view of it; else undefined. */
  view(from: number, lengthBytes: number): Uint8Array | undefined {
    let at = this.start + from;
    for (const buffer of this.buffers) {
      if (at + lengthBytes <= buffer.length)
        return at === 0 && lengthBytes === buffer.length ? buffer : buffer.subarray(at, at + lengthBytes);
      if (at < buffer.length) return undefined;
      at -= buffer.length;
    }
    assert(lengthBytes === 0, 'a request uses memory that it has');
    return undefined;
  }

  /** A stretch in one piece: a view where it lies so, else a copy of it. */
  gather(from: number, lengthBytes: number): Uint8Array {
    const view = this.view(from, lengthBytes);
    if (view) return view;
    const copy = Buffer.allocUnsafe(lengthBytes);
    this.copyTo(copy, from, lengthBytes);
    return copy;
  }

  /** Copies a stretch to the beginning of `target`. */
  copyTo(target: Uint8Array, from: number, lengthBytes: number): void {
    let done = 0;
    for (const piece of this.pieces(from, lengthBytes)) {
      target.set(piece, done);
      done += piece.length;
    }
  }

  /** Fills [from, ...) with the bytes of `source`. */
  copyFrom(source: Uint8Array, from: number): void {
    let done = 0;
    for (const piece of this.pieces(from, source.length)) {
      piece.set(source.subarray(done, done + piece.length));
      done += piece.length;
    }
  }

  fillZero(from: number, lengthBytes: number): void {
    const first = this.buffers[0];
    const at = this.start + from;
    if (first && at + lengthBytes <= first.length) first.fill(0, at, at + lengthBytes);
    else for (const piece of this.pieces(from, lengthBytes)) piece.fill(0);
  }

  isZero(from: number, lengthBytes: number): boolean {
    const view = this.view(from, lengthBytes);
    return view ? isZero(view) : this.pieces(from, lengthBytes).every(isZero);
  }

  /** Views of the pieces of a stretch, none of them empty. */
  pieces(from: number, lengthBytes: number): Uint8Array[] {
    const pieces: Uint8Array[] = [];
    let at = this.start + from;
    let left = lengthBytes;
    for (const buffer of this.buffers) {
      if (left === 0) break;
      const length = Math.min(left, buffer.length - at);
      if (length > 0) {
        pieces.push(at === 0 && length === buffer.length ? buffer : buffer.subarray(at, at + length));
        left -= length;
      }
      at = Math.max(0, at - buffer.length);
    }
    assert(left === 0, 'a request uses memory that it has');
    return pieces;
  }
}
