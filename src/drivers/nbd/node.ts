import { alignDown, alignUp } from '../../base/align.js';
import type { ByteRanges } from '../../base/byte-ranges.js';
import { BlockError, errnoError } from '../../base/error.js';
import { GiB } from '../../base/limits.js';
import type {
  DriverInfo,
  DriverInstance,
  IoDriver,
  PermissionSet,
  PreparedChange,
  Reopening,
} from '../../block/driver.js';
import { hasPermission, Permission } from '../../block/permissions.js';
import { type BlockStatus, Flag, hasFlag, type IoRequest } from '../../block/request.js';
import type { NbdExportInfo } from '../../wire/nbd/client-handshake.js';
import type { NbdSession } from '../../wire/nbd/session.js';
import {
  ALLOCATION_DEPTH,
  AllocationState,
  CommandFlag,
  TransmissionFlag,
} from '../../wire/nbd/constants.js';
import type { NbdSettings } from './address.js';

/** A node is a whole number of these: what an export of another size lacks of the last one reads as zeroes. */
const SECTOR_BYTES = 512;
/** Longest stretch whose status is asked for at once. */
const MAX_STATUS_BYTES = GiB;

const NOTHING: PreparedChange = { commit: () => undefined, abort: () => undefined };

/** An export of an NBD server. */
export class NbdNode implements DriverInstance {
  readonly io: IoDriver;
  readonly hasFixedLength = true;
  readonly requestAlignmentBytes: number;
  readonly #session: NbdSession;
  #noFlush: boolean;

  constructor(session: NbdSession, settings: NbdSettings) {
    this.#session = session;
    this.#noFlush = settings.cache['no-flush'];
    this.requestAlignmentBytes = blockBytesOf(session.info);
    this.io = new NbdIo(session, this.requestAlignmentBytes, settings['x-dirty-bitmap']);
  }

  get lengthBytes(): number {
    return alignUp(this.#session.info.lengthBytes, SECTOR_BYTES);
  }

  get canWriteZeroes(): boolean {
    return this.#session.has(TransmissionFlag.sendWriteZeroes);
  }

  get isReadOnly(): boolean {
    return this.#session.has(TransmissionFlag.readOnly);
  }

  async flush(): Promise<void> {
    if (this.#noFlush || this.isReadOnly || !this.#session.has(TransmissionFlag.sendFlush)) return;
    await this.#session.flush();
  }

  /** Like a device, an export is taken as it is by whoever needs less of it. */
  async truncate(lengthBytes: number): Promise<void> {
    if (lengthBytes > this.lengthBytes) throw new BlockError('unsupported', 'Cannot grow NBD nodes');
  }

  async prepareReadOnly(readOnly: boolean): Promise<PreparedChange> {
    if (!readOnly && this.isReadOnly) throw deniedError();
    return NOTHING;
  }

  async prepareReopen({ settings, readOnly }: Reopening): Promise<PreparedChange> {
    await this.prepareReadOnly(readOnly || settings['auto-read-only'] === true);
    return { commit: () => void (this.#noFlush = settings.cache['no-flush']), abort: () => undefined };
  }

  /** A node that became read-only by auto-read-only takes no writers. */
  async preparePermissions({ perm }: PermissionSet): Promise<PreparedChange> {
    const writes = [Permission.write, Permission.writeUnchanged].some((bit) => hasPermission(perm, bit));
    if (writes && this.isReadOnly)
      throw new BlockError('permission', 'Block node is read-only', { errno: 'EPERM' });
    return NOTHING;
  }

  info(): DriverInfo {
    return { hasNoDirtyFlag: true };
  }

  get hasLostWrites(): boolean {
    return this.#session.hasLost;
  }

  takeDoubtful(): ByteRanges {
    return this.#session.takeDoubtful();
  }

  cancelInFlight(): void {
    this.#session.abandon();
  }

  yank(): void {
    this.#session.abandon();
  }

  close(): Promise<void> {
    return this.#session.close();
  }
}

/** What may be asked of a server. One that did not tell, and is not so old that it knows no block status, takes any bytes. */
function blockBytesOf({ blockSize, context, lengthBytes }: NbdExportInfo): number {
  if (blockSize) return blockSize.minimum;
  return context !== undefined || lengthBytes % SECTOR_BYTES !== 0 ? 1 : SECTOR_BYTES;
}

/** A read-only export was asked for writing. */
export function deniedError(): BlockError {
  return errnoError('EACCES', 'Could not open image');
}

class NbdIo implements IoDriver {
  readonly copiesToPeer = true;
  readonly #session: NbdSession;
  readonly #alignmentBytes: number;
  /** Status is asked of the depth in a chain. */
  readonly #isDepth: boolean;

  constructor(session: NbdSession, alignmentBytes: number, contextName: string | undefined) {
    this.#session = session;
    this.#isDepth = contextName === ALLOCATION_DEPTH;
    this.#alignmentBytes = alignmentBytes;
  }

  get connection(): number {
    return this.#session.connection;
  }

  get honoursFua(): boolean {
    return this.#session.has(TransmissionFlag.sendFua);
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const inside = this.#inside(offset, lengthBytes);
    if (inside > 0) await this.#readInside(request, from, inside, offset);
    if (inside < lengthBytes) request.fillZero(from + inside, lengthBytes - inside);
  }

  /** A reply's data comes in one piece. */
  async #readInside(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const view = request.view(from, lengthBytes);
    const buffer = view ?? Buffer.allocUnsafe(lengthBytes);
    await this.#session.read(offset, buffer);
    request.assertIs(generation);
    if (!view) request.copyFrom(buffer, from);
  }

  async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    const { generation } = request;
    const inside = this.#inside(offset, lengthBytes);
    if (inside < lengthBytes)
      this.#checkRest(offset, lengthBytes, request.isZero(from + inside, lengthBytes - inside));
    if (inside > 0) await this.#session.write(offset, request.gather(from, inside), this.#fua(flags));
    request.assertIs(generation);
  }

  /** From the page cache into the socket, unless it is encrypted; nothing of what has to be read from a device first. */
  async copyFrom(
    source: IoDriver,
    sourceOffset: number,
    offset: number,
    lengthBytes: number,
  ): Promise<number> {
    const { file } = source;
    if (!file || !this.#session.sendsFiles || this.#inside(offset, lengthBytes) < lengthBytes)
      throw errnoError('ENOTSUP');
    const place = { file, position: sourceOffset };
    return (await this.#session.writeFile(offset, place, lengthBytes, 0)) ? lengthBytes : 0;
  }

  async writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    const session = this.#session;
    const fast = hasFlag(flags, Flag.noFallback);
    const offered =
      session.has(TransmissionFlag.sendWriteZeroes) && (!fast || session.has(TransmissionFlag.sendFastZero));
    if (!offered) throw errnoError('ENOTSUP');
    let command = this.#fua(flags);
    if (!hasFlag(flags, Flag.mayUnmap)) command += CommandFlag.noHole;
    if (fast) command += CommandFlag.fastZero;
    const inside = this.#inside(offset, lengthBytes);
    this.#checkRest(offset, lengthBytes, true);
    if (inside > 0) await session.writeZeroes(offset, inside, command);
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    if (!this.#session.has(TransmissionFlag.sendTrim)) return;
    const inside = this.#inside(offset, lengthBytes);
    if (inside > 0) await this.#session.trim(offset, inside);
  }

  async status(offset: number, asked: number): Promise<BlockStatus> {
    const lengthBytes = this.#inside(offset, asked);
    if (lengthBytes === 0) return { lengthBytes: asked, allocated: true, zero: true, data: false };
    if (this.#session.info.context === undefined) return dataStatus(offset, lengthBytes);
    const align = this.#alignmentBytes;
    const start = alignDown(offset, align);
    const look = Math.min(offset - start + lengthBytes, MAX_STATUS_BYTES);
    const end = Math.min(this.#session.info.lengthBytes, start + look + align - 1);
    const extent = await this.#session.blockStatus(start, alignDown(end - start, align));
    const known = Math.min(extent.lengthBytes - (offset - start), lengthBytes);
    // An extent that ends within a block says nothing of the block.
    if (known <= 0) return dataStatus(offset, Math.min(lengthBytes, align));
    // QEMU's reading of a context that is not base:allocation: dirty is no data, a depth of 2 and more is zeroes.
    const state = this.#isDepth ? Math.min(extent.state, 2) : extent.state;
    const zero = hasState(state, AllocationState.zero);
    const data = !hasState(state, AllocationState.hole);
    return { lengthBytes: known, allocated: true, zero, data, hostOffset: offset };
  }

  /** Whether the server has space it tells at the write or the flush; that there is none beyond the end is certain. */
  async allocate(offset: number, lengthBytes: number): Promise<void> {
    this.#checkRest(offset, lengthBytes, true);
  }

  async extend(lengthBytes: number): Promise<void> {
    this.#checkRest(0, lengthBytes, true);
  }

  /** How much of a range lies in the export. */
  #inside(offset: number, lengthBytes: number): number {
    return Math.max(0, Math.min(lengthBytes, this.#session.info.lengthBytes - offset));
  }

  /** Zeroes are there already in what the last sector lacks; anything else finds the export full. */
  #checkRest(offset: number, lengthBytes: number, isZero: boolean): void {
    const { lengthBytes: exported } = this.#session.info;
    const end = offset + lengthBytes;
    if (end > alignUp(exported, SECTOR_BYTES) || (end > exported && !isZero))
      throw errnoError('ENOSPC', undefined, { offset });
  }

  /** As a command flag. Without it the block layer's flush after the write has to do. */
  #fua(flags: number): number {
    return hasFlag(flags, Flag.fua) && this.#session.has(TransmissionFlag.sendFua) ? CommandFlag.fua : 0;
  }
}

function hasState(state: number, bit: number): boolean {
  return Math.floor(state / bit) % 2 === 1;
}

function dataStatus(offset: number, lengthBytes: number): BlockStatus {
  return { lengthBytes, allocated: true, zero: false, data: true, hostOffset: offset };
}
