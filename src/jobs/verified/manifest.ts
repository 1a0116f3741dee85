import { createHash } from 'node:crypto';
import { dirname } from 'node:path';
import { BlockError } from '../../base/error.js';
import { isPowerOfTwo } from '../../base/align.js';
import { KiB, MiB } from '../../base/limits.js';
import { readBuffer, writeBuffer } from '../../host/whole-buffers.js';
import { SHA256_BYTES } from '../../codec/checksum.js';
import type { Host, HostFile } from '../../host/host.js';
import { ChunkHashes } from './chunk-hashes.js';

/**
 * A manifest is text. Lines: `livedisk-manifest 1`; `size BYTES`; `chunk BYTES`; then, in the order of the disk,
 * `zero FIRST COUNT` (chunks of zeroes) and `data FIRST HEX` (SHA-256 of one chunk); the last one `end HEX`, SHA-256 of
 * all before it. Of chunks that it does not name it says nothing.
 */
const MAGIC = 'livedisk-manifest 1';
const FLUSHED_CHARS = MiB;
const MIN_CHUNK_BYTES = 512;
const MAX_CHUNK_BYTES = 64 * MiB;
/** Longest line: two numbers or a digest. */
const MAX_LINE_BYTES = 200;
const READ_BYTES = 256 * KiB;

/** Writes a new file, durably. Errors: exists; those of files. */
export async function writeManifest(host: Host, path: string, hashes: ChunkHashes): Promise<void> {
  const file = await host.files.open(path, { write: true, create: true, exclusive: true });
  try {
    await writeLines(file, linesOf(hashes));
    await file.flush();
    await file.close();
    await host.files.syncDirectory(dirname(path));
  } catch (error) {
    await file.close().catch(() => undefined);
    await host.files.unlink(path).catch(() => undefined);
    throw error;
  }
}

/** Errors: exists, before anything is done that would be in vain. */
export async function checkNoManifest(host: Host, path: string): Promise<void> {
  if (await host.files.stat(path)) throw new BlockError('exists', `Manifest '${path}' exists already`);
}

function* linesOf(hashes: ChunkHashes): Generator<string> {
  const { chunkBytes, sizeBytes } = hashes;
  yield MAGIC;
  yield `size ${sizeBytes}`;
  yield `chunk ${chunkBytes}`;
  for (let at = hashes.next(0); at; at = hashes.next(at.offset + at.lengthBytes)) {
    const first = at.offset / chunkBytes;
    const end = Math.ceil((at.offset + at.lengthBytes) / chunkBytes);
    if (at.isZero) yield `zero ${first} ${end - first}`;
    else for (let i = first; i < end; i++) yield `data ${i} ${hashes.digestAt(i)?.toString('hex')}`;
  }
}

async function writeLines(file: HostFile, lines: Iterable<string>): Promise<void> {
  const hash = createHash('sha256');
  let position = 0;
  let text = '';
  const flush = async (): Promise<void> => {
    const bytes = Buffer.from(text);
    await writeBuffer(file, position, bytes);
    position += bytes.length;
    text = '';
  };
  for (const line of lines) {
    hash.update(`${line}\n`);
    text += `${line}\n`;
    if (text.length >= FLUSHED_CHARS) await flush();
  }
  text += `end ${hash.digest('hex')}\n`;
  await flush();
}

/**
 * Of a disk that is so long. Errors: invalid, when it is of another one; corrupt, when it is none, was cut short or
 * changed; those of files.
 */
export async function readManifest(host: Host, path: string, diskBytes: number): Promise<ChunkHashes> {
  const file = await host.files.open(path, { write: false });
  try {
    return await parse(linesIn(file, path), host, { path, diskBytes });
  } finally {
    await file.close();
  }
}

async function* linesIn(file: HostFile, path: string): AsyncGenerator<string, undefined> {
  const size = file.sizeBytes();
  let rest = '';
  for (let at = 0; at < size; at += READ_BYTES) {
    const buffer = Buffer.alloc(Math.min(READ_BYTES, size - at));
    await readBuffer(file, at, buffer);
    const lines = (rest + buffer.toString('latin1')).split('\n');
    rest = lines.pop() ?? '';
    if (rest.length > MAX_LINE_BYTES) throw broken(path, 'a line is too long');
    yield* lines;
  }
  if (rest !== '') throw broken(path, 'it was cut short');
  return undefined;
}

async function parse(
  lines: AsyncGenerator<string, undefined>,
  host: Host,
  { path, diskBytes }: { path: string; diskBytes: number },
): Promise<ChunkHashes> {
  const hash = createHash('sha256');
  const take = async (): Promise<string> => {
    const { value } = await lines.next();
    if (value === undefined) throw broken(path, 'it was cut short');
    return value;
  };
  const header = async (pattern: RegExp): Promise<number> => {
    const line = await take();
    const found = pattern.exec(line);
    if (!found) throw broken(path, `'${line.slice(0, MAX_LINE_BYTES)}'`);
    hash.update(`${line}\n`);
    return Number(found[1] ?? 0);
  };
  await header(new RegExp(`^${MAGIC}$`));
  const sizeBytes = await header(/^size (\d{1,16})$/);
  const chunkBytes = await header(/^chunk (\d{1,16})$/);
  if (sizeBytes !== diskBytes) {
    const text = `Manifest '${path}' is of a disk of ${sizeBytes} bytes, and this one has ${diskBytes}`;
    throw new BlockError('invalid', text);
  }
  if (!isPowerOfTwo(chunkBytes) || chunkBytes < MIN_CHUNK_BYTES || chunkBytes > MAX_CHUNK_BYTES)
    throw broken(path, `chunk ${chunkBytes}`);
  const hashes = new ChunkHashes(host.compute, sizeBytes, chunkBytes);
  for (let next = 0; ;) {
    const line = await take();
    const end = /^end ([0-9a-f]{64})$/.exec(line);
    if (end) {
      if (end[1] !== hash.digest('hex')) throw broken(path, 'it was changed');
      if (!(await lines.next()).done) throw broken(path, 'something follows its end');
      return hashes;
    }
    hash.update(`${line}\n`);
    next = addLine(hashes, line, next);
    if (next < 0) throw broken(path, `'${line.slice(0, MAX_LINE_BYTES)}'`);
  }
}

/** Answers behind which chunk the next line begins; -1: the line is none. */
function addLine(hashes: ChunkHashes, line: string, next: number): number {
  const found = /^(?:zero (\d{1,16}) (\d{1,16})|data (\d{1,16}) ([0-9a-f]{64}))$/.exec(line);
  if (!found) return -1;
  const [, zero, count, data, digest] = found;
  const first = Number(zero ?? data);
  const chunks = Number(count ?? 1);
  if (first < next || chunks === 0 || first + chunks > hashes.chunks) return -1;
  if (digest !== undefined) hashes.add(first, Buffer.from(digest, 'hex').subarray(0, SHA256_BYTES));
  else {
    const offset = first * hashes.chunkBytes;
    hashes.zeroes(offset, Math.min(chunks * hashes.chunkBytes, hashes.sizeBytes - offset));
  }
  return first + chunks;
}

function broken(path: string, what: string): BlockError {
  return new BlockError('corrupt', `Manifest '${path}' cannot be used: ${what}`);
}
