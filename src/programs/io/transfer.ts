import { errnoError } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import type { InternalSnapshots } from '../../block/driver.js';
import { vmStateKeeper } from '../../block/internal-snapshots.js';
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

/** Looks at the values of options in their order. */
function checkValue(letter: string, value: string): false {
  if (letter === 'P') parsePattern(value);
  return false;
}

/** The same of reads, where sizes have letters too. */
function checkReadValue(letter: string, value: string): false {
  if (letter === 's' || letter === 'l') parseBytes(value);
  return checkValue(letter, value);
}

/** The same, until a request is to count as invalid. */
const checkUntilInvalid = (letter: string, value: string): boolean =>
  letter === 'i' || checkValue(letter, value);

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

/** What a request does to the machine's state beside the disk; nothing else goes on there meanwhile. */
async function withVmState(
  { graph, backend }: IoSession,
  use: (keeper: InternalSnapshots) => Promise<void>,
): Promise<void> {
  const keeper = vmStateKeeper(backend.node);
  await (graph ? graph.drained([backend.node], () => use(keeper)) : use(keeper));
}

interface ReadRequest {
  name: string;
  ofVmState?: boolean;
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
    if (request.ofVmState !== true) checkInside(session.backend, offset, lengthBytes);
    buffer = session.newBuffer(lengthBytes);
    if (request.ofVmState === true)
      await withVmState(session, (keeper) => keeper.readPresentVmState(offset, buffer));
    else await session.backend.read(offset, buffer);
  });
  const matches = verification === undefined || verify(session, buffer, offset, verification);
  if (request.reporting.quiet) return matches;
  if (request.dump) session.output.print(formatDump(buffer, offset));
  report(session, { verb: 'read', offset, lengthBytes, seconds }, request.reporting);
  return matches;
}

/** read [-bCqv] [-P pattern [-s off] [-l len]] off len */
export function readCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const line = new CommandLine('read', words, 'bCl:pP:qs:v', checkReadValue);
  line.expect(2);
  const offset = line.bytes(0);
  const lengthBytes = line.lengthBytes(1);
  const verification = verificationOf(line, lengthBytes);
  const ofVmState = line.has('b');
  if (ofVmState) checkSectors({ offset, count: lengthBytes });
  const rest = { ofVmState, verification, dump: line.has('v'), reporting: reporting(line) };
  return runRead(session, { name: 'read', offset, lengthBytes, ...rest });
}

function vectorRead(name: string, line: CommandLine): ReadRequest {
  const pattern = line.value('P');
  line.atLeast(2);
  const offset = line.bytes(0);
  const lengthBytes = line.vectorBytes(1);
  const verification =
    pattern === undefined ? undefined : { pattern: parsePattern(pattern), from: 0, lengthBytes };
  return { name, offset, lengthBytes, verification, dump: line.has('v'), reporting: reporting(line) };
}

/** readv [-Cqv] [-P pattern] off len [len..] */
export function readvCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  return runRead(session, vectorRead('readv', new CommandLine('readv', words, 'CP:qv', checkValue)));
}

/** aio_read [-Ciqv] [-P pattern] off len [len..] */
export function aioReadCommand(session: IoSession, words: readonly string[]): boolean {
  const line = new CommandLine('aio_read', words, 'CP:iqv', checkUntilInvalid);
  if (line.isDone) {
    session.backend.statistics.invalid('read', session.backend.clock.nowMs());
    session.output.print('injecting invalid read request\n');
    return true;
  }
  // qemu-io names the request so when an asynchronous one fails.
  const request = vectorRead('readv', line);
  session.launch(async () => void (await runRead(session, request)));
  return true;
}

interface WriteRequest {
  name: string;
  ofVmState?: boolean;
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
    if (request.ofVmState !== true) checkInside(backend, offset, lengthBytes);
    if (!fill) return backend.writeZeroes(offset, lengthBytes, flags);
    const buffer = session.newBuffer(lengthBytes);
    fill(buffer);
    if (request.ofVmState === true)
      await withVmState(session, (keeper) => keeper.writePresentVmState(offset, buffer));
    else await backend.write(offset, buffer, flags);
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
}

function checkSectors(values: { [name: string]: number }): void {
  for (const [name, value] of Object.entries(values))
    if (value % SECTOR_BYTES !== 0)
      throw new CommandFailure(`${value} is not a sector-aligned value for '${name}'`);
}

/** write [-bCcfnquz] [-P pattern | -s source_file] off len */
export async function writeCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const line = new CommandLine('write', words, 'bcCfnpP:qs:uz', checkValue);
  line.expect(2);
  checkWriteOptions(line);
  const offset = line.bytes(0);
  const lengthBytes = line.lengthBytes(1);
  const ofVmState = line.has('b');
  if (line.has('c') || ofVmState) checkSectors({ offset, count: lengthBytes });
  const source = line.value('s');
  let fill: WriteRequest['fill'] = line.has('z') ? undefined : patternFill(line);
  if (source !== undefined) {
    const content = await readPatternFile(session, source, lengthBytes);
    fill = (buffer) => void buffer.fill(content);
  }
  return runWrite(session, {
    name: 'write',
    ofVmState,
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
  // Of /dev/urandom and the like there is as much as is asked for.
  const sizeBytes = found.isSpecial === 'character device' ? mostBytes : found.sizeBytes;
  if (sizeBytes === 0) throw new CommandFailure(`${path}: file is empty`, true);
  const file = await host.files.open(path, { write: false });
  try {
    const content = Buffer.alloc(Math.max(1, Math.min(sizeBytes, mostBytes)));
    await readBuffer(file, 0, content);
    return content;
  } finally {
    await file.close();
  }
}

/** writev [-Cfq] [-P pattern] off len [len..] */
export function writevCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const line = new CommandLine('writev', words, 'CfP:q', checkValue);
  const fill = patternFill(line);
  line.atLeast(2);
  const request = { offset: line.bytes(0), lengthBytes: line.vectorBytes(1), flags: writeFlags(line) };
  return runWrite(session, { name: 'writev', ...request, fill, reporting: reporting(line) });
}

/** aio_write [-Cfiquz] [-P pattern] off len [len..] */
export function aioWriteCommand(session: IoSession, words: readonly string[]): boolean {
  const line = new CommandLine('aio_write', words, 'CfiP:quz', checkUntilInvalid);
  if (line.isDone) {
    session.backend.statistics.invalid('write', session.backend.clock.nowMs());
    session.output.print('injecting invalid write request\n');
    return true;
  }
  const fill = patternFill(line);
  line.atLeast(2);
  const zero = line.has('z');
  if (line.has('u') && !zero) throw new CommandFailure('-u requires -z to be specified');
  if (zero && line.operands.length > 2)
    throw new CommandFailure('-z supports only a single length parameter');
  const offset = line.bytes(0);
  const lengthBytes = zero ? line.lengthBytes(1) : line.vectorBytes(1);
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
