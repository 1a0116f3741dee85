import { isPowerOfTwo } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { KiB, MAX_IMAGE_BYTES, MAX_NBD_STRING_BYTES } from '../../base/limits.js';
import type { ByteReader } from './byte-reader.js';
import {
  decodeOptionReply,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  type HeaderStyle,
  readUint53,
  uint32,
} from './codec.js';
import * as nbd from './constants.js';
import { HandshakeFlag, Info, Option, OptionReply } from './constants.js';

/** What the server told of the export, and what both sides agreed upon. */
export interface NbdExportInfo {
  lengthBytes: number;
  /** TransmissionFlag bits. */
  flags: number;
  style: HeaderStyle;
  /** Id of the context that was asked for; undefined when BLOCK_STATUS may not be asked. */
  context: number | undefined;
  /** Undefined when the server did not say. */
  blockSize: { minimum: number; preferred: number; maximum: number } | undefined;
  description: string | undefined;
}

/** How one option was answered. */
interface Answer {
  /** Payloads before the final ACK, by type. */
  replies: Array<{ type: number; payload: Buffer }>;
  /** Instead of the ACK. */
  refusal: Refusal | undefined;
}

interface Refusal {
  type: number;
  error: BlockError;
}

/** Replies to one option; a server has no reason for more. */
const MAX_REPLIES = 1024;
const MAX_MINIMUM_BLOCK_BYTES = 64 * KiB;
/** Zeroes after the reply to EXPORT_NAME. */
const ZEROES_BYTES = 124;

const OPTION_NAMES: Readonly<Record<number, string>> = {
  [Option.exportName]: 'export name',
  [Option.abort]: 'abort',
  [Option.list]: 'list',
  [Option.info]: 'info',
  [Option.go]: 'go',
  [Option.startTls]: 'starttls',
  [Option.structuredReply]: 'structured reply',
  [Option.listMetaContext]: 'list meta context',
  [Option.setMetaContext]: 'set meta context',
  [Option.extendedHeaders]: 'extended headers',
};

/** What a client wants. */
export interface WantedExport {
  readonly exportName: string;
  /** The metadata context that BLOCK_STATUS is to be about (base:allocation). */
  readonly contextName?: string;
  /** The headers to ask for first (extended). */
  readonly style?: HeaderStyle;
  /** Begins TLS, once the server has agreed to it; without it nothing is said. */
  readonly secure?: () => Promise<void>;
}

/** An export as LIST and INFO tell it. */
export interface ListedExport {
  name: string;
  description: string | undefined;
  /** Undefined: the server lacks INFO. */
  info: NbdExportInfo | undefined;
  contexts: string[];
}

/** The client's side of the handshake up to the transmission phase. Old servers are met with what they speak. */
export class ClientHandshake {
  readonly #reader: ByteReader;
  readonly #send: (message: Buffer) => void;
  readonly #exportName: string;
  readonly #contextName: string;
  readonly #style: HeaderStyle;
  readonly #secure: (() => Promise<void>) | undefined;
  /** What the server has answered last in place of doing it. */
  #refused: BlockError | undefined;

  constructor(reader: ByteReader, send: (message: Buffer) => void, wanted: WantedExport) {
    const { exportName, contextName = nbd.BASE_ALLOCATION, style = 'extended' } = wanted;
    if (Buffer.byteLength(exportName) > MAX_NBD_STRING_BYTES)
      throw new BlockError('invalid', 'export name too long to send to server');
    this.#reader = reader;
    this.#send = send;
    this.#exportName = exportName;
    this.#contextName = contextName;
    this.#style = style;
    this.#secure = wanted.secure;
  }

  /**
   * Errors: not-found (no such export), corrupt (no NBD server), unsupported, limit, and those of the reader. A server
   * that has refused something is told goodbye.
   */
  run(): Promise<NbdExportInfo> {
    return this.#politely(() => this.#run());
  }

  /** All exports, with their contexts; instead of run(). Errors: as run(). */
  list(): Promise<ListedExport[]> {
    return this.#politely(() => this.#list());
  }

  async #politely<T>(body: () => Promise<T>): Promise<T> {
    try {
      return await body();
    } catch (error) {
      if (error === this.#refused) this.#send(encodeOption(Option.abort, Buffer.alloc(0)));
      throw error;
    }
  }

  async #run(): Promise<NbdExportInfo> {
    await this.#greeted();
    const magic = await this.#reader.take(8, 'server magic');
    const [high, low] = [magic.readUInt32BE(0), magic.readUInt32BE(4)];
    if (high === nbd.OPTION_MAGIC_HIGH && low === nbd.OPTION_MAGIC_LOW)
      return checked(await this.#newstyle());
    if (high === nbd.OLDSTYLE_MAGIC_HIGH && low === nbd.OLDSTYLE_MAGIC_LOW)
      return checked(await this.#oldstyle());
    throw badMagic('server', magic);
  }

  /** Errors: corrupt where it is no NBD server. */
  async #greeted(): Promise<void> {
    const magic = await this.#reader.take(8, 'initial magic');
    if (magic.readUInt32BE(0) !== nbd.MAGIC_HIGH || magic.readUInt32BE(4) !== nbd.MAGIC_LOW)
      throw badMagic('initial', magic);
  }

  async #list(): Promise<ListedExport[]> {
    await this.#greeted();
    const magic = await this.#reader.take(8, 'server magic');
    if (magic.readUInt32BE(0) !== nbd.OPTION_MAGIC_HIGH || magic.readUInt32BE(4) !== nbd.OPTION_MAGIC_LOW)
      throw badMagic('server', magic);
    const offered = (await this.#reader.take(2, 'server flags')).readUInt16BE(0);
    if ((offered & HandshakeFlag.fixedNewstyle) === 0)
      throw new BlockError('unsupported', 'Server does not support fixed newstyle');
    this.#send(uint32(offered & (HandshakeFlag.fixedNewstyle | HandshakeFlag.noZeroes)));
    await this.#startTls();
    const style = await this.#agreeStyle();
    const { replies, refusal } = await this.#ask(Option.list, Buffer.alloc(0));
    if (refusal) throw refusal.error;
    const exports: ListedExport[] = [];
    for (const { type, payload } of replies) {
      const nameBytes = payload.length >= 4 ? payload.readUInt32BE(0) : Infinity;
      if (type !== OptionReply.server || nameBytes > payload.length - 4)
        throw unexpectedReply(Option.list, type);
      const name = payload.toString('utf8', 4, 4 + nameBytes);
      const description = payload.toString('utf8', 4 + nameBytes);
      exports.push(await this.#describe(name, description === '' ? undefined : description, style));
    }
    this.#send(encodeOption(Option.abort, Buffer.alloc(0)));
    return exports;
  }

  async #describe(name: string, described: string | undefined, style: HeaderStyle): Promise<ListedExport> {
    const { info, description } = (await this.#infoOf(Option.info, name)) ?? {};
    const base = { name, description: description ?? described, info, contexts: [] };
    if (style === 'simple') return base;
    const request = encodeMetaContextRequest({ name, queries: [] });
    const { replies } = await this.#ask(Option.listMetaContext, request);
    return { ...base, contexts: replies.map(({ payload }) => payload.toString('utf8', 4)) };
  }

  async #oldstyle(): Promise<NbdExportInfo> {
    if (this.#secure) throw new BlockError('unsupported', 'Server does not support STARTTLS');
    if (this.#exportName !== '')
      throw new BlockError('unsupported', 'Server does not support non-empty export names');
    const bytes = await this.#reader.take(8 + 4 + ZEROES_BYTES, 'export length');
    return exportInfo(readUint53(bytes, 0, 'export size'), bytes.readUInt16BE(10));
  }

  async #newstyle(): Promise<NbdExportInfo> {
    const offered = (await this.#reader.take(2, 'server flags')).readUInt16BE(0);
    const isFixed = (offered & HandshakeFlag.fixedNewstyle) !== 0;
    const noZeroes = (offered & HandshakeFlag.noZeroes) !== 0;
    this.#send(uint32((isFixed ? HandshakeFlag.fixedNewstyle : 0) + (noZeroes ? HandshakeFlag.noZeroes : 0)));
    if (!isFixed) {
      if (this.#secure) throw new BlockError('unsupported', 'Server does not support STARTTLS');
      return this.#chooseByName(noZeroes);
    }
    await this.#startTls();
    const style = await this.#agreeStyle();
    const context = style === 'simple' ? undefined : await this.#agreeContext();
    const info = (await this.#go()) ?? (await this.#chooseByName(noZeroes));
    return { ...info, style, context };
  }

  async #startTls(): Promise<void> {
    if (!this.#secure) return;
    const { refusal } = await this.#ask(Option.startTls, Buffer.alloc(0));
    if (refusal?.type === OptionReply.errUnsup)
      throw new BlockError('unsupported', "Server don't support STARTTLS option");
    if (refusal) throw refusal.error;
    await this.#secure();
  }

  async #agreeStyle(): Promise<HeaderStyle> {
    if (this.#style === 'simple') return 'simple';
    const wantsExtended = this.#style === 'extended';
    if (wantsExtended && !(await this.#ask(Option.extendedHeaders, Buffer.alloc(0))).refusal)
      return 'extended';
    return (await this.#ask(Option.structuredReply, Buffer.alloc(0))).refusal ? 'simple' : 'structured';
  }

  /** EXPORT_NAME, which has no errors: the server hangs up. */
  async #chooseByName(noZeroes: boolean): Promise<NbdExportInfo> {
    this.#send(encodeOption(Option.exportName, Buffer.from(this.#exportName)));
    const bytes = await this.#reader.take(10 + (noZeroes ? 0 : ZEROES_BYTES), 'export length');
    return exportInfo(readUint53(bytes, 0, 'export size'), bytes.readUInt16BE(8));
  }

  async #agreeContext(): Promise<number | undefined> {
    const request = { name: this.#exportName, queries: [this.#contextName] };
    const { replies, refusal } = await this.#ask(Option.setMetaContext, encodeMetaContextRequest(request));
    if (refusal) return undefined;
    const contexts = replies.filter(({ type }) => type === OptionReply.metaContext);
    if (contexts.length === 0) return undefined;
    const payload = contexts[0]?.payload;
    if (contexts.length > 1 || !payload || payload.toString('utf8', 4) !== this.#contextName)
      throw new BlockError('corrupt', 'Failed to negotiate query: unexpected meta context');
    return payload.readUInt32BE(0);
  }

  /** Undefined: the server lacks GO. */
  async #go(): Promise<NbdExportInfo | undefined> {
    return (await this.#infoOf(Option.go, this.#exportName))?.info;
  }

  /** By INFO or GO. Undefined: the server lacks it; nothing else will do when it refuses for another reason. */
  async #infoOf(
    option: number,
    name: string,
  ): Promise<{ info: NbdExportInfo; description: string | undefined } | undefined> {
    const request = encodeInfoRequest({ name, infos: [Info.blockSize] });
    const { replies, refusal } = await this.#ask(option, request);
    if (refusal?.type === OptionReply.errUnsup) return undefined;
    if (refusal) throw refusal.error;
    let info: NbdExportInfo | undefined;
    let blockSize: NbdExportInfo['blockSize'];
    let description: string | undefined;
    for (const { type, payload } of replies) {
      if (type !== OptionReply.info || payload.length < 2) throw unexpectedReply(option, type);
      const kind = payload.readUInt16BE(0);
      if (kind === Info.export) info = decodeInfoExport(payload);
      else if (kind === Info.blockSize) blockSize = decodeBlockSize(payload);
      else if (kind === Info.description) description = payload.toString('utf8', 2);
    }
    if (!info) throw new BlockError('corrupt', 'broken server omitted NBD_INFO_EXPORT');
    return { info: { ...info, blockSize, description }, description };
  }

  /** Sends an option and gathers its replies up to the final one. */
  async #ask(option: number, payload: Buffer): Promise<Answer> {
    this.#send(encodeOption(option, payload));
    const replies: Answer['replies'] = [];
    for (;;) {
      const header = decodeOptionReply(await this.#reader.take(nbd.OPTION_REPLY_BYTES, 'option reply'));
      if (!header) throw new BlockError('corrupt', 'Unexpected option reply magic');
      if (header.option !== option)
        throw new BlockError('corrupt', `Unexpected option type ${header.option}, expected ${option}`);
      const { type, lengthBytes } = header;
      if (lengthBytes > nbd.MAX_OPTION_BYTES || replies.length >= MAX_REPLIES)
        throw new BlockError('corrupt', `Reply to option ${option} is too long`);
      const content = await this.#reader.take(lengthBytes, 'option reply');
      if (type === OptionReply.ack) return { replies, refusal: undefined };
      if (type >= FIRST_ERROR) {
        this.#refused = optionError(option, type, content);
        return { replies, refusal: { type, error: this.#refused } };
      }
      if (type === OptionReply.metaContext && lengthBytes < 5) throw unexpectedReply(option, type);
      replies.push({ type, payload: Buffer.from(content) });
    }
  }
}

const FIRST_ERROR = 2 ** 31;

function exportInfo(lengthBytes: number, flags: number): NbdExportInfo {
  return {
    lengthBytes,
    flags,
    style: 'simple',
    context: undefined,
    blockSize: undefined,
    description: undefined,
  };
}

function decodeInfoExport(payload: Buffer): NbdExportInfo {
  if (payload.length !== 12)
    throw new BlockError('corrupt', 'broken server sent NBD_INFO_EXPORT of wrong length');
  return exportInfo(readUint53(payload, 2, 'export size'), payload.readUInt16BE(10));
}

function decodeBlockSize(payload: Buffer): NonNullable<NbdExportInfo['blockSize']> {
  if (payload.length !== 14)
    throw new BlockError('corrupt', 'broken server sent NBD_INFO_BLOCK_SIZE of wrong length');
  const minimum = payload.readUInt32BE(2);
  const preferred = payload.readUInt32BE(6);
  const maximum = payload.readUInt32BE(10);
  if (!isPowerOfTwo(minimum) || minimum > MAX_MINIMUM_BLOCK_BYTES)
    throw new BlockError('corrupt', `server minimum block size ${minimum} is not a power of two up to 65536`);
  if (!isPowerOfTwo(preferred) || preferred < minimum)
    throw new BlockError('corrupt', `server preferred block size ${preferred} is not valid`);
  if (maximum < minimum) throw new BlockError('corrupt', `server maximum block size ${maximum} is not valid`);
  return { minimum, preferred, maximum };
}

function checked(info: NbdExportInfo): NbdExportInfo {
  const { lengthBytes, blockSize } = info;
  if (lengthBytes > MAX_IMAGE_BYTES)
    throw new BlockError('limit', `NBD export of ${lengthBytes} bytes is too large`);
  if (blockSize && lengthBytes % blockSize.minimum !== 0) {
    const text = `export length ${lengthBytes} is not a multiple of minimum block size ${blockSize.minimum}`;
    throw new BlockError('corrupt', text);
  }
  return info;
}

function unexpectedReply(option: number, type: number): BlockError {
  return new BlockError('corrupt', `Unexpected reply type ${type} to option ${option}`);
}

/** In QEMU's words; what the server says of it is a hint. */
function optionError(option: number, type: number, text: Buffer): BlockError {
  const what = `option ${option} (${OPTION_NAMES[option] ?? '<unknown>'})`;
  const reported = text.length > 0 ? [`server reported: ${printable(text)}`] : [];
  const hint = hintOf(reported);
  switch (type) {
    case OptionReply.errUnknown:
      return new BlockError('not-found', 'Requested export not available', hint);
    case OptionReply.errPolicy:
      return new BlockError('permission', `Denied by server for ${what}`, hint);
    case OptionReply.errTlsRequired:
      return new BlockError(
        'unsupported',
        `TLS negotiation required before ${what}`,
        hintOf(['Did you forget a valid tls-creds?', ...reported]),
      );
    case OptionReply.errPlatform:
      return new BlockError('unsupported', `Server lacks support for ${what}`, hint);
    case OptionReply.errInvalid:
      return new BlockError('invalid', `Invalid parameters for ${what}`, hint);
    case OptionReply.errShutdown:
      return new BlockError('closed', `Server shutting down before ${what}`, hint);
    case OptionReply.errBlockSizeRequired:
      return new BlockError('invalid', `Server requires INFO_BLOCK_SIZE for ${what}`, hint);
    default:
      return new BlockError('invalid', `Unknown error code when asking for ${what}`, hint);
  }
}

function hintOf(lines: readonly string[]): { hint?: string } {
  return lines.length > 0 ? { hint: lines.join('\n') } : {};
}

/** A peer's text without control characters, and not too much of it. */
export function printable(text: Buffer): string {
  return text.toString('utf8', 0, Math.min(text.length, 1024)).replace(/\p{C}/gu, '?');
}

function badMagic(which: string, bytes: Buffer): BlockError {
  return new BlockError('corrupt', `Bad ${which} magic received: 0x${bytes.toString('hex')}`);
}
