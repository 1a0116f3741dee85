import { errnoError } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import { Flag } from '../../block/request.js';
import { CommandLine } from './arguments.js';
import { parseBytes, parsePattern } from './numbers.js';
import { formatDump, formatReport, type Transfer } from './report.js';
import { CommandFailure, type IoSession, requestError, UsageFailure } from './session.js';
import { readBuffer } from '../../host/whole-buffers.js';

const SECTOR_BYTES = 512;

/** What the buffers of writes hold unless a pattern is given. */
const DEFAULT_PATTERN = 0xcd;

interface Reporting {
  quiet: boolean;
  machine: boolean;
}

const reporting = (line: CommandLine): Reporting => ({ quiet: line.has('q'), machine: line.has('C') });

function report(session: IoSession, transfer: Transfer, { quiet, machine }: Reporting): void {
  if (!quiet) session.output.print(formatReport(transfer, machine));
}

/** Runs a request of a command; a failure is told as "NAME failed: TEXT". */
async function perform(session: IoSession, name: string, request: () => Promise<void>): Promise<number> {
  try {
    return await session.time(request);
  } catch (error) {
    throw new CommandFailure(`${name} failed: ${requestError(error)}`);
  }
}

/** Before a buffer is made for it: a request outside the disk. */
function checkInside(backend: BlockBackend, offset: number, lengthBytes: number): void {
  if (offset + lengthBytes > backend.lengthBytes) throw errnoError('EIO');
}

function refuse(line: CommandLine, letter: string, name: string, what: string): void {
  if (line.has(letter)) throw new CommandFailure(`${name} -${letter}: ${what} not supported by livedisk`);
}

interface Verification {
  pattern: number;
  /** Within the data read. */
  from: number;
  lengthBytes: number;
}

function verificationOf(line: CommandLine, lengthBytes: number): Verification | undefined {
  const pattern = line.value('P');
  const from = parseBytes(line.value('s') ?? '0');
  const part = line.has('l') ? parseBytes(line.value('l') ?? '') : lengthBytes - from;
  if (pattern === undefined) {
    if (line.has('l') || line.has('s')) throw new UsageFailure();
    return undefined;
  }
  if (part < 0 || from + part > lengthBytes)
    throw new CommandFailure('pattern verification range exceeds end of read data');
  return { pattern: parsePattern(pattern), from, lengthBytes: part };
}

/** False, and told, when the data is not the pattern. */
function verify(session: IoSession, buffer: Buffer, offset: number, wanted: Verification): boolean {
  const part = buffer.subarray(wanted.from, wanted.from + wanted.lengthBytes);
  if (part.every((byte) => byte === wanted.pattern)) return true;
  session.output.print(
    `Pattern verification failed at offset ${offset + wanted.from}, ${wanted.lengthBytes} bytes\n`,
  );
  return false;
}

interface ReadRequest {
  name: string;
  offset: number;
  lengthBytes: number;
  verification: Verification | undefined;
  dump: boolean;
  reporting: Reporting;
}

async function runRead(session: IoSession, request: ReadRequest): Promise<boolean> {
  const { offset, lengthBytes, verification } = request;
  let buffer = Buffer.alloc(0);
  const seconds = await perform(session, request.name, async () => {
    checkInside(session.backend, offset, lengthBytes);
    buffer = Buffer.allocUnsafe(lengthBytes);
    await session.backend.read(offset, buffer);
  });
  const matches = verification === undefined || verify(session, buffer, offset, verification);
  if (request.reporting.quiet) return matches;
  if (request.dump) session.output.print(formatDump(buffer, offset));
  report(session, { verb: 'read', offset, lengthBytes, seconds }, request.reporting);
  return matches;
}

/** read [-Cqv] [-P pattern [-s off] [-l len]] off len */
export function readCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const line = new CommandLine('read', words, 'bCl:pP:qs:v');
  if (line.has('P')) parsePattern(line.value('P') ?? '');
  line.expect(2);
  refuse(line, 'b', 'read', 'the VM state is');
  const offset = line.bytes(0);
  const lengthBytes = line.lengthBytes(1);
  const verification = verificationOf(line, lengthBytes);
  const rest = { verification, dump: line.has('v'), reporting: reporting(line) };
  return runRead(session, { name: 'read', offset, lengthBytes, ...rest });
}

function vectorRead(name: string, line: CommandLine): ReadRequest {
  const pattern = line.value('P');
  if (pattern !== undefined) parsePattern(pattern);
  line.atLeast(2);
  const offset = line.bytes(0);
  const lengthBytes = line.vectorBytes(1);
  const verification =
    pattern === undefined ? undefined : { pattern: parsePattern(pattern), from: 0, lengthBytes };
  return { name, offset, lengthBytes, verification, dump: line.has('v'), reporting: reporting(line) };
}

/** readv [-Cqv] [-P pattern] off len [len..] */
export function readvCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  return runRead(session, vectorRead('readv', new CommandLine('readv', words, 'CP:qv')));
}

/** aio_read [-Ciqv] [-P pattern] off len [len..] */
export function aioReadCommand(session: IoSession, words: readonly string[]): boolean {
  const line = new CommandLine('aio_read', words, 'CP:iqv');
  // qemu-io names the request so when an asynchronous one fails.
  const request = vectorRead('readv', line);
  if (line.has('i')) {
    session.backend.statistics.read.failed++;
    session.output.print('injecting invalid read request\n');
    return true;
  }
  session.launch(async () => void (await runRead(session, request)));
  return true;
}

interface WriteRequest {
  name: string;
  offset: number;
  lengthBytes: number;
  flags: number;
  /** Undefined: zeroes, without data. */
  fill: ((buffer: Buffer) => void) | undefined;
  reporting: Reporting;
}

async function runWrite(session: IoSession, request: WriteRequest): Promise<boolean> {
  const { offset, lengthBytes, flags, fill } = request;
  const { backend } = session;
  const seconds = await perform(session, request.name, async () => {
    checkInside(backend, offset, lengthBytes);
    if (!fill) return backend.writeZeroes(offset, lengthBytes, flags);
    const buffer = Buffer.allocUnsafe(lengthBytes);
    fill(buffer);
    await backend.write(offset, buffer, flags);
  });
  report(session, { verb: 'wrote', offset, lengthBytes, seconds }, request.reporting);
  return true;
}

function patternFill(line: CommandLine): (buffer: Buffer) => void {
  const text = line.value('P');
  const pattern = text === undefined ? DEFAULT_PATTERN : parsePattern(text);
  return (buffer) => void buffer.fill(pattern);
}

function writeFlags(line: CommandLine): number {
  return (
    (line.has('f') ? Flag.fua : 0) +
    (line.has('u') ? Flag.mayUnmap : 0) +
    (line.has('n') ? Flag.noFallback : 0) +
    (line.has('c') ? Flag.compressed : 0)
  );
}

function checkWriteOptions(line: CommandLine): void {
  const b = line.has('b');
  if (b && line.has('z')) throw new CommandFailure('-b and -z cannot be specified at the same time');
  if (line.has('f') && (b || line.has('c')))
    throw new CommandFailure('-f and -b or -c cannot be specified at the same time');
  if (line.has('n') && !line.has('z')) throw new CommandFailure('-n requires -z to be specified');
  if (line.has('u') && !line.has('z')) throw new CommandFailure('-u requires -z to be specified');
  if (['z', 'P', 's'].filter((letter) => line.has(letter)).length > 1)
    throw new CommandFailure('Only one of -z, -P, and -s can be specified at the same time');
  refuse(line, 'b', 'write', 'the VM state is');
}

function checkSectors(values: { [name: string]: number }): void {
  for (const [name, value] of Object.entries(values))
    if (value % SECTOR_BYTES !== 0)
      throw new CommandFailure(`${value} is not a sector-aligned value for '${name}'`);
}

/** write [-Ccfnquz] [-P pattern | -s source_file] off len */
export async function writeCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const line = new CommandLine('write', words, 'bcCfnpP:qs:uz');
  if (line.has('P')) parsePattern(line.value('P') ?? '');
  line.expect(2);
  checkWriteOptions(line);
  const offset = line.bytes(0);
  const lengthBytes = line.lengthBytes(1);
  if (line.has('c')) checkSectors({ offset, count: lengthBytes });
  const source = line.value('s');
  let fill: WriteRequest['fill'] = line.has('z') ? undefined : patternFill(line);
  if (source !== undefined) {
    const content = await readPatternFile(session, source, lengthBytes);
    fill = (buffer) => void buffer.fill(content);
  }
  return runWrite(session, {
    name: 'write',
    offset,
    lengthBytes,
    flags: writeFlags(line),
    fill,
    reporting: reporting(line),
  });
}

/** The first bytes of a file, at least one: what a write repeats. */
async function readPatternFile(session: IoSession, path: string, mostBytes: number): Promise<Buffer> {
  const { host } = session;
  if (!host) throw new CommandFailure('write -s: files are out of reach here');
  const found = await host.files.stat(path);
  if (!found) throw new CommandFailure(`${path}: No such file or directory`, true);
  if (found.sizeBytes === 0) throw new CommandFailure(`${path}: file is empty`, true);
  const file = await host.files.open(path, { write: false });
  try {
    const content = Buffer.alloc(Math.max(1, Math.min(found.sizeBytes, mostBytes)));
    await readBuffer(file, 0, content);
    return content;
  } finally {
    await file.close();
  }
}

/** writev [-Cfq] [-P pattern] off len [len..] */
export function writevCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const line = new CommandLine('writev', words, 'CfP:q');
  const fill = patternFill(line);
  line.atLeast(2);
  const request = { offset: line.bytes(0), lengthBytes: line.vectorBytes(1), flags: writeFlags(line) };
  return runWrite(session, { name: 'writev', ...request, fill, reporting: reporting(line) });
}

/** aio_write [-Cfiquz] [-P pattern] off len [len..] */
export function aioWriteCommand(session: IoSession, words: readonly string[]): boolean {
  const line = new CommandLine('aio_write', words, 'CfiP:quz');
  const fill = patternFill(line);
  line.atLeast(2);
  const zero = line.has('z');
  if (line.has('u') && !zero) throw new CommandFailure('-u requires -z to be specified');
  const offset = line.bytes(0);
  if (zero && line.operands.length > 2)
    throw new CommandFailure('-z supports only a single length parameter');
  const lengthBytes = zero ? line.lengthBytes(1) : line.vectorBytes(1);
  if (line.has('i')) {
    session.backend.statistics.write.failed++;
    session.output.print('injecting invalid write request\n');
    return true;
  }
  session.launch(async () => {
    await runWrite(session, {
      name: 'aio_write',
      offset,
      lengthBytes,
      flags: writeFlags(line),
      fill: zero ? undefined : fill,
      reporting: reporting(line),
    });
  });
  return true;
}

/** discard [-Cq] off len */
export async function discardCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const line = new CommandLine('discard', words, 'Cq');
  line.expect(2);
  const offset = line.bytes(0);
  const lengthBytes = line.lengthBytes(1);
  const seconds = await perform(session, 'discard', async () => {
    checkInside(session.backend, offset, lengthBytes);
    await session.backend.discard(offset, lengthBytes);
  });
  report(session, { verb: 'discard', offset, lengthBytes, seconds }, reporting(line));
  return true;
}
