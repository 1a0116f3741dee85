import { toBlockError, errnoOf, type BlockError } from '../../base/error.js';
import { Flag } from '../../base/io-request.js';
import { KiB, MAX_NBD_REQUEST_BYTES, MAX_REQUEST_BYTES } from '../../base/limits.js';
import type { BufferPool } from './buffer-pool.js';
import { nbdErrorOf, type Extent, readUint64Rounded, type Request } from './codec.js';
import { Command, CommandFlag, MAX_STATUS_EXTENTS, NbdError } from './constants.js';
import type { Agreement } from './server-handshake.js';
import type { MetaContext } from './target.js';
import type { TargetRequests } from './target-requests.js';

/** Read at once while prefetching. */
const CACHE_PIECE_BYTES = 256 * KiB;
/** What an extent takes until it is sent. */
const EXTENT_BYTES = 64;

export interface CommandRule {
  /** In complaints. */
  readonly name: string;
  /** Flags it takes besides FUA, which all take. */
  readonly flags: number;
  /** DF, too, once structured replies are agreed. */
  readonly takesDf?: boolean;
  /** PAYLOAD_LENGTH, too, with extended headers. */
  readonly takesPayload?: boolean;
  /** Refused on a read-only export. */
  readonly modifies: boolean;
  /** Length is bounded by MAX_NBD_REQUEST_BYTES. */
  readonly isBounded: boolean;
  /** Has a range that must lie in the export; what is answered when it does not. */
  readonly pastEnd: number;
  /** In the structured error. */
  readonly failure: string;
}

/** Commands of the transmission phase but DISC. */
export const COMMANDS: ReadonlyMap<number, CommandRule> = new Map<number, CommandRule>([
  [
    Command.read,
    {
      name: 'read',
      flags: 0,
      takesDf: true,
      modifies: false,
      isBounded: true,
      pastEnd: NbdError.EINVAL,
      failure: 'reading from file failed',
    },
  ],
  [
    Command.write,
    {
      name: 'write',
      flags: 0,
      takesPayload: true,
      modifies: true,
      isBounded: true,
      pastEnd: NbdError.ENOSPC,
      failure: 'writing to file failed',
    },
  ],
  [
    Command.flush,
    {
      name: 'flush',
      flags: 0,
      modifies: false,
      isBounded: false,
      pastEnd: NbdError.EINVAL,
      failure: 'flush failed',
    },
  ],
  [
    Command.trim,
    {
      name: 'trim',
      flags: 0,
      modifies: true,
      isBounded: false,
      pastEnd: NbdError.EINVAL,
      failure: 'discard failed',
    },
  ],
  [
    Command.cache,
    {
      name: 'cache',
      flags: 0,
      modifies: false,
      isBounded: true,
      pastEnd: NbdError.EINVAL,
      failure: 'caching data failed',
    },
  ],
  [
    Command.writeZeroes,
    {
      name: 'write zeroes',
      flags: CommandFlag.noHole | CommandFlag.fastZero,
      modifies: true,
      isBounded: false,
      pastEnd: NbdError.ENOSPC,
      failure: 'writing to file failed',
    },
  ],
  [
    Command.blockStatus,
    {
      name: 'block status',
      flags: CommandFlag.reqOne,
      takesPayload: true,
      modifies: false,
      isBounded: false,
      pastEnd: NbdError.EINVAL,
      failure: "can't get block status",
    },
  ],
]);

export interface Refusal {
  readonly error: number;
  readonly message: string;
}

/** BLOCK_STATUS with a payload that names no contexts, unknown ones, or some twice. */
export const INVALID_PAYLOAD: Refusal = {
  error: NbdError.EINVAL,
  message: 'invalid payload of block status',
};

/** Whether it changes what is on the disk. */
export function isChange(command: number): boolean {
  return COMMANDS.get(command)?.modifies ?? false;
}

/** What is wrong with a request; undefined when it may run. Allocates only to complain. */
export function refusalOf(request: Request, agreement: Agreement): Refusal | undefined {
  const { command, offset, lengthBytes } = request;
  const rule = COMMANDS.get(command);
  if (!rule) return { error: NbdError.EINVAL, message: `invalid request type (${command}) received` };
  // Then the length is the payload's; the range is looked at when that is there.
  const isFiltered = command === Command.blockStatus && (request.flags & CommandFlag.payloadLength) !== 0;
  if (isFiltered) return refusalOfFlags(request, rule, agreement);
  if (rule.isBounded && lengthBytes > MAX_NBD_REQUEST_BYTES) {
    const message = `len (${lengthBytes}) is larger than max len (${MAX_NBD_REQUEST_BYTES})`;
    return { error: NbdError.EINVAL, message };
  }
  if (rule.modifies && agreement.export.readOnly)
    return { error: NbdError.EPERM, message: 'Export is read-only' };
  const sizeBytes = agreement.export.target.lengthBytes;
  if (offset > sizeBytes || lengthBytes > sizeBytes - offset) {
    const message = `operation past EOF; From: ${offset}, Len: ${lengthBytes}, Size: ${sizeBytes}`;
    return { error: rule.pastEnd, message };
  }
  return refusalOfFlags(request, rule, agreement);
}

function refusalOfFlags(request: Request, rule: CommandRule, agreement: Agreement): Refusal | undefined {
  let valid = CommandFlag.fua | rule.flags;
  if (rule.takesDf && agreement.style !== 'simple') valid |= CommandFlag.df;
  if (rule.takesPayload && agreement.style === 'extended') valid |= CommandFlag.payloadLength;
  if ((request.flags & ~valid) !== 0) {
    const flags = request.flags.toString(16);
    return {
      error: NbdError.EINVAL,
      message: `unsupported flags for command ${rule.name} (got 0x${flags})`,
    };
  }
  if (request.command !== Command.blockStatus) return undefined;
  if (agreement.contexts.size === 0)
    return { error: NbdError.EINVAL, message: 'CMD_BLOCK_STATUS not negotiated' };
  return request.lengthBytes === 0 ? { error: NbdError.EINVAL, message: 'need non-zero length' } : undefined;
}

/** The wire's error number and text for what a target threw. */
export function failureOf(command: number, thrown: unknown): Refusal {
  const error: BlockError = toBlockError(thrown);
  const what = COMMANDS.get(command)?.failure ?? 'request failed';
  return { error: nbdErrorOf(errnoOf(error)), message: `${what}: ${error.message}` };
}

/** What a command without payload in either direction, BLOCK_STATUS apart, keeps of memory at the most. */
export function commandMemory({ command, lengthBytes }: Request): number {
  return command === Command.cache ? Math.min(lengthBytes, CACHE_PIECE_BYTES) : 0;
}

/** What the answer to BLOCK_STATUS of a range, about so many contexts, keeps of memory at the most. */
export function statusMemory(flags: number, lengthBytes: number, contexts: number): number {
  return contexts * EXTENT_BYTES * Math.min(lengthBytes, mostExtents(flags));
}

/** Commands without payload in either direction, BLOCK_STATUS apart. Buffers are of the pool. */
export async function runCommand(target: TargetRequests, request: Request, pool: BufferPool): Promise<void> {
  const { command, flags } = request;
  const isFua = (flags & CommandFlag.fua) !== 0;
  switch (command) {
    case Command.flush:
      return target.run('flush', 0, 0);
    case Command.cache:
      return prefetch(target, request, pool);
    case Command.trim:
      await eachPiece(request, (offset, lengthBytes) => target.run('discard', offset, lengthBytes));
      return isFua ? target.run('flush', 0, 0) : undefined;
    case Command.writeZeroes: {
      let zeroFlags: number = isFua ? Flag.fua : Flag.none;
      if ((flags & CommandFlag.noHole) === 0) zeroFlags |= Flag.mayUnmap;
      if ((flags & CommandFlag.fastZero) !== 0) zeroFlags |= Flag.noFallback;
      return eachPiece(request, (offset, lengthBytes) =>
        target.run('zeroes', offset, lengthBytes, zeroFlags),
      );
    }
  }
}

/** The wire allows 4 GiB, the block layer less. */
async function eachPiece(
  { offset, lengthBytes }: Request,
  run: (offset: number, lengthBytes: number) => Promise<void>,
): Promise<void> {
  for (let done = 0; done < lengthBytes; done += MAX_REQUEST_BYTES)
    await run(offset + done, Math.min(lengthBytes - done, MAX_REQUEST_BYTES));
}

async function prefetch(
  target: TargetRequests,
  { offset, lengthBytes }: Request,
  pool: BufferPool,
): Promise<void> {
  const pieceBytes = Math.min(lengthBytes, CACHE_PIECE_BYTES);
  const buffer = pool.take(pieceBytes);
  try {
    for (let done = 0; done < lengthBytes; done += pieceBytes)
      await target.run('read', offset + done, Math.min(pieceBytes, lengthBytes - done), Flag.none, buffer);
  } finally {
    pool.give(buffer);
  }
}

/** Which contexts a BLOCK_STATUS is about; undefined: the payload that should say so is not valid. */
export function askedContexts(
  payload: Buffer,
  { contexts }: Agreement,
): { lengthBytes: number; ids: number[] } | undefined {
  const ids: number[] = [];
  for (let at = 8; at < payload.length; at += 4) ids.push(payload.readUInt32BE(at));
  const isValid = ids.length > 0 && new Set(ids).size === ids.length && ids.every((id) => contexts.has(id));
  return isValid ? { lengthBytes: readUint64Rounded(payload, 0), ids } : undefined;
}

function mostExtents(flags: number): number {
  return (flags & CommandFlag.reqOne) !== 0 ? 1 : MAX_STATUS_EXTENTS;
}

/** Extents from the request's offset on; neighbours that are alike are one. */
export async function statusExtents(context: MetaContext, request: Request): Promise<Extent[]> {
  const most = mostExtents(request.flags);
  const extents: Extent[] = [];
  let { offset, lengthBytes: left } = request;
  // However finely a disk is divided, one request keeps others waiting only so long; the client asks on.
  for (let steps = 0; left > 0 && steps < MAX_STATUS_EXTENTS; steps++) {
    const answer = context.extentAt(offset, left);
    const { lengthBytes, state } = answer instanceof Promise ? await answer : answer;
    const last = extents.at(-1);
    if (last?.state === state) last.lengthBytes += lengthBytes;
    else if (extents.length === most) break;
    else extents.push({ lengthBytes, state });
    offset += lengthBytes;
    left -= lengthBytes;
  }
  return extents;
}
