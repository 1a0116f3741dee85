import assert from 'node:assert/strict';
import fc from 'fast-check';
import { Flag } from '../../src/block/request.js';
import { type Cuts, cutMemory, isTidy } from './memory-pieces.js';
import { assertSameBytes, type TestDisk } from './test-disk.js';
import { whileChanging } from './unstable-memory.js';

/** One request of a random history. Writes fill their range with `value`. */
export interface DiskRequest {
  kind: 'write' | 'fua' | 'zero' | 'unmap' | 'discard' | 'flush' | 'read';
  offset: number;
  lengthBytes: number;
  value: number;
  /** Of its memory, and where in it the data begins; none: one buffer. */
  cuts?: Cuts;
  start?: number;
  /**
   * Its memory changes all the while between `value` and this. Of a write, each byte of the disk is one of them
   * afterwards.
   */
  alternative?: number;
}

/** Sizes that matter to what is tested. */
export interface DiskShape {
  sizeBytes: number;
  /** Requests begin and end at multiples of this as often as not. */
  unitBytes: number;
}

/** Requests inside a disk, half of them on units, most of them short. */
export function arbitraryRequest({ sizeBytes, unitBytes }: DiskShape): fc.Arbitrary<DiskRequest> {
  const units = Math.floor(sizeBytes / unitBytes);
  const kind = fc.constantFrom<DiskRequest['kind']>(
    'write',
    'write',
    'write',
    'fua',
    'zero',
    'unmap',
    'discard',
    'flush',
    'read',
  );
  const aligned = fc
    .tuple(fc.nat(units - 1), fc.integer({ min: 1, max: 3 }))
    .map(([unit, count]) => ({ offset: unit * unitBytes, lengthBytes: count * unitBytes }));
  const free = fc
    .tuple(fc.nat(sizeBytes - 1), fc.oneof(fc.nat(1000), fc.nat(2 * unitBytes)))
    .map(([offset, lengthBytes]) => ({ offset, lengthBytes }));
  const memory = fc.record({
    cuts: fc.oneof(fc.constant([]), fc.array(fc.nat(unitBytes), { minLength: 1, maxLength: 5 })),
    start: fc.nat(20),
    alternative: fc.oneof(fc.constant(undefined), fc.nat(255)),
  });
  return fc
    .tuple(kind, fc.oneof(aligned, free), fc.integer({ min: 1, max: 255 }), memory)
    .map(([kind, { offset, lengthBytes }, value, { cuts, start, alternative }]) => ({
      kind,
      offset,
      lengthBytes: Math.min(lengthBytes, sizeBytes - offset),
      value,
      cuts,
      start,
      ...(hasMemory(kind) && alternative !== undefined && { alternative }),
    }));
}

function hasMemory(kind: DiskRequest['kind']): boolean {
  return kind === 'write' || kind === 'fua' || kind === 'read';
}

/** What a disk must hold, byte for byte. */
export class DiskModel {
  bytes: Buffer;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  /** Performs a request on the disk and on the model, and compares what it touched. */
  async perform(disk: TestDisk, request: DiskRequest): Promise<void> {
    const { offset, lengthBytes } = request;
    await performOn(disk, request);
    if (request.kind === 'discard') await this.#adoptDiscard(disk, offset, lengthBytes);
    else if (valueWritten(request) > 0 && request.alternative !== undefined)
      await this.#adoptUnstable(disk, request);
    else applyTo(this.bytes, request);
    const actual = await readInto(disk, request);
    assertSameBytes(
      actual,
      this.bytes.subarray(offset, offset + lengthBytes),
      `after ${describe(request)}, from ${offset}`,
    );
  }

  /** A discard leaves each byte as it was or zeroes it; anything else was somebody else's data. */
  async #adoptDiscard(disk: TestDisk, offset: number, lengthBytes: number): Promise<void> {
    const now = await disk.read(offset, lengthBytes);
    const old = this.bytes.subarray(offset, offset + lengthBytes);
    for (let i = 0; i < lengthBytes; i++) {
      if (now[i] !== 0) assert.equal(now[i], old[i], `discard shows foreign data at ${offset + i}`);
    }
    now.copy(this.bytes, offset);
  }

  /** Each byte is one that the memory had; from here on it stays so. */
  async #adoptUnstable(disk: TestDisk, request: DiskRequest): Promise<void> {
    const { offset, lengthBytes, value, alternative } = request;
    const now = await disk.read(offset, lengthBytes);
    const odd = now.find((byte) => byte !== value && byte !== alternative);
    assert.equal(odd, undefined, `after ${describe(request)} there is a byte that its memory never had`);
    now.copy(this.bytes, offset);
  }

  async compare(disk: TestDisk, what: string): Promise<void> {
    assertSameBytes(await disk.readAll(), this.bytes, what);
  }

  resize(lengthBytes: number): void {
    const grown = Buffer.alloc(lengthBytes);
    this.bytes.copy(grown);
    this.bytes = grown;
  }
}

export async function performOn(disk: TestDisk, request: DiskRequest): Promise<void> {
  const { backend } = disk;
  const { offset, lengthBytes } = request;
  switch (request.kind) {
    case 'write':
      return writeFrom(disk, request, Flag.none);
    case 'fua':
      return writeFrom(disk, request, Flag.fua);
    case 'zero':
      return backend.writeZeroes(offset, lengthBytes);
    case 'unmap':
      return backend.writeZeroes(offset, lengthBytes, Flag.mayUnmap);
    case 'discard':
      return backend.discard(offset, lengthBytes);
    case 'flush':
      return backend.flush();
    case 'read':
      return void (await readInto(disk, request, request.alternative !== undefined));
  }
}

async function writeFrom(disk: TestDisk, request: DiskRequest, flags: number): Promise<void> {
  const { offset, lengthBytes, value, alternative, cuts = [], start = 0 } = request;
  const memory = cutMemory(lengthBytes, cuts, start);
  const fill = (byte: number): void => {
    for (const piece of memory.pieces(0, lengthBytes)) piece.fill(byte);
  };
  fill(value);
  const asked = disk.backend.requests.take().ask('write', offset, lengthBytes, flags);
  asked.setBuffers(memory.buffers, start);
  asked.isStable = alternative === undefined;
  try {
    if (alternative === undefined) {
      if (!disk.backend.tryRun(asked)) await disk.backend.run(asked);
    } else await whileChanging(disk.backend.run(asked), [value, alternative], fill);
  } finally {
    disk.backend.requests.give(asked);
  }
}

/** Into memory in pieces; what is beside them stays. */
async function readInto(disk: TestDisk, request: DiskRequest, isChanging = false): Promise<Uint8Array> {
  const { offset, lengthBytes, cuts = [], start = 0 } = request;
  const memory = cutMemory(lengthBytes, cuts, start);
  const asked = disk.backend.requests.take().ask('read', offset, lengthBytes);
  asked.setBuffers(memory.buffers, start);
  asked.isStable = false;
  const scribble = (byte: number): void => {
    for (const piece of memory.pieces(0, lengthBytes)) piece.fill(byte);
  };
  if (isChanging) await whileChanging(disk.backend.run(asked), [0, 255], scribble);
  else if (!disk.backend.tryRun(asked)) await disk.backend.run(asked);
  disk.backend.requests.give(asked);
  assert.ok(isTidy(memory), 'memory beside the pieces');
  return memory.gather(0, lengthBytes);
}

/** The bytes that a request puts into its range; -1 for one that changes nothing, or may not. */
export function valueWritten({ kind, value }: DiskRequest): number {
  if (kind === 'write' || kind === 'fua') return value;
  return kind === 'zero' || kind === 'unmap' ? 0 : -1;
}

function applyTo(bytes: Buffer, request: DiskRequest): void {
  const value = valueWritten(request);
  if (value >= 0) bytes.fill(value, request.offset, request.offset + request.lengthBytes);
}

function describe({ kind, offset, lengthBytes }: DiskRequest): string {
  return `${kind} ${offset} +${lengthBytes}`;
}

/** After concurrent requests that were all done, or failed: each byte holds what it held, or what one of the requests that touch it put there. */
export function assertOneOfEach(
  now: Buffer,
  before: Buffer,
  requests: readonly DiskRequest[],
  outcome: 'done' | 'failed' = 'done',
): void {
  const touched = requests.filter(({ kind }) => kind !== 'flush' && kind !== 'read');
  const mayStay = before.map(() => 1);
  for (const request of touched) {
    if (outcome === 'done' && request.kind !== 'discard')
      mayStay.fill(0, request.offset, request.offset + request.lengthBytes);
  }
  const puts = touched.flatMap((request) => {
    const range = { start: request.offset, end: request.offset + request.lengthBytes };
    const put = { ...range, value: request.kind === 'discard' ? 0 : valueWritten(request) };
    const { alternative } = request;
    return alternative === undefined ? [put] : [put, { ...range, value: alternative }];
  });
  for (let i = 0; i < now.length; i++) {
    if (mayStay[i] === 1 && now[i] === before[i]) continue;
    if (puts.some(({ start, end, value }) => start <= i && i < end && value === now[i])) continue;
    const allowed = puts.filter(({ start, end }) => start <= i && i < end).map(({ value }) => value);
    assert.fail(`byte ${i} is ${now[i]}, not ${before[i]} or ${allowed.join()}`);
  }
}

/** Block status covers the disk, and says zero only where zeroes are read. */
export async function assertStatusFits(disk: TestDisk, maySayZeroData = false): Promise<void> {
  const content = await disk.readAll();
  for (let at = 0; at < content.length;) {
    const status = await disk.backend.status(at, content.length - at);
    assert.ok(status.lengthBytes > 0 && at + status.lengthBytes <= content.length, `status length at ${at}`);
    const isBoth = status.zero && status.data;
    assert.ok(maySayZeroData || !isBoth, `status at ${at} says both zero and data`);
    if (status.zero) {
      const part = content.subarray(at, at + status.lengthBytes);
      assertSameBytes(part, Buffer.alloc(part.length), `status says zero at ${at}`);
    } else assert.ok(status.allocated, `nobody holds the data at ${at}`);
    at += status.lengthBytes;
  }
}
