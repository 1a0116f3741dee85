import { assert } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { MAX_NBD_REQUEST_BYTES } from '../../base/limits.js';
import type { TracePoint } from '../../base/trace.js';
import { ByteCollector } from './byte-collector.js';
import {
  decodeInfoRequest,
  decodeMetaContextRequest,
  decodeOption,
  encodeGreeting,
  encodeOptionReply,
  type HeaderStyle,
  type OptionHeader,
  uint32,
  writeUint64,
} from './codec.js';
import * as nbd from './constants.js';
import { Info, Option, OptionReply } from './constants.js';
import {
  contextsOf,
  type MetaContext,
  type NbdExport,
  type NbdExportLookup,
  transmissionFlags,
} from './target.js';

/** What the two sides agreed upon. */
export interface Agreement {
  readonly export: NbdExport;
  readonly style: HeaderStyle;
  /** What BLOCK_STATUS is answered with, by id. */
  readonly contexts: ReadonlyMap<number, MetaContext>;
}

/** 'drop': close the connection at once; 'end': after sending what is queued; 'secure': go on with TLS. */
type Outcome = 'more' | 'drop' | 'end' | 'secure' | Agreement;

/** QEMU's server advertises the same. */
const BLOCK_SIZE = { minimum: 1, preferred: 4096 } as const;
const EXPORT_NAME_ZEROES_BYTES = 124;
/** A client that asks for more than this before it chooses is not going to. */
const MAX_OPTIONS = 1024;
/** So much of a name is told in an error. */
const TOLD_NAME_BYTES = 80;
const NOTHING = Buffer.alloc(0);

interface OptionRule {
  /** In QEMU's complaints. */
  readonly name: string;
  /** Takes no payload. */
  readonly isEmpty: boolean;
  run(handshake: ServerHandshake, payload: Buffer, option: number): Outcome;
}

/** The option haggling phase: what each option does. Anything else is answered ERR_UNSUP. */
const OPTIONS: ReadonlyMap<number, OptionRule> = new Map<number, OptionRule>([
  [Option.exportName, { name: 'export name', isEmpty: false, run: (h, payload) => h.exportName(payload) }],
  [Option.abort, { name: 'abort', isEmpty: false, run: (h) => h.abort() }],
  [Option.list, { name: 'list', isEmpty: true, run: (h) => h.list() }],
  [Option.startTls, { name: 'starttls', isEmpty: true, run: (h) => h.startTls() }],
  [Option.info, { name: 'info', isEmpty: false, run: (h, payload, option) => h.info(payload, option) }],
  [Option.go, { name: 'go', isEmpty: false, run: (h, payload, option) => h.info(payload, option) }],
  [Option.structuredReply, { name: 'structured reply', isEmpty: true, run: (h) => h.structuredReply() }],
  [
    Option.listMetaContext,
    { name: 'list meta context', isEmpty: false, run: (h, payload) => h.listMetaContext(payload) },
  ],
  [
    Option.setMetaContext,
    { name: 'set meta context', isEmpty: false, run: (h, payload) => h.setMetaContext(payload) },
  ],
  [Option.extendedHeaders, { name: 'extended headers', isEmpty: true, run: (h) => h.extendedHeaders() }],
]);

const nameOf = (option: number): string => OPTIONS.get(option)?.name ?? '<unknown>';

type State = 'clientFlags' | 'optionHeader' | 'optionPayload' | 'oversized';

/** What each state does with the message that it waited for. */
const STATES: Record<State, (handshake: ServerHandshake, bytes: Buffer) => Outcome> = {
  clientFlags: (h, bytes) => h.clientFlags(bytes),
  optionHeader: (h, bytes) => h.optionHeader(bytes),
  optionPayload: (h, bytes) => h.optionPayload(bytes),
  // Reached when the last byte was skipped, with nothing collected.
  oversized: (h) => h.oversized(),
};

/** The server's side of the fixed newstyle handshake. */
export class ServerHandshake {
  readonly #exports: NbdExportLookup;
  readonly #send: (message: Buffer) => boolean;
  readonly #collector = new ByteCollector();
  #state: State = 'clientFlags';
  #skipBytes = 0;
  #options = 0;
  #current: OptionHeader = { option: 0, lengthBytes: 0 };
  #isFixed = false;
  #failure: string | undefined;
  /** Clients get nowhere without. */
  readonly #needsTls: boolean;
  readonly #trace: TracePoint | undefined;
  #isSecure = false;
  #noZeroes = false;
  #style: HeaderStyle = 'simple';
  /** What SET_META_CONTEXT agreed upon, for the export of that name. */
  #contexts: { exportName: string; ids: readonly number[] } | undefined;

  /** `send` answers false when the peer has too much to read already. */
  constructor(
    exports: NbdExportLookup,
    needsTls: boolean,
    send: (message: Buffer) => boolean,
    trace?: TracePoint,
  ) {
    this.#trace = trace;
    this.#exports = exports;
    this.#needsTls = needsTls;
    this.#send = send;
    this.#collector.expect(4);
  }

  begin(): void {
    this.#send(encodeGreeting(nbd.HandshakeFlag.fixedNewstyle | nbd.HandshakeFlag.noZeroes));
  }

  /** Consumes bytes of chunk from `at`; after an outcome other than 'more' the rest is not its business. */
  consume(chunk: Buffer, at: number): { next: number; outcome: Outcome } {
    let next = at;
    while (next < chunk.length) {
      if (this.#skipBytes > 0) {
        const bytes = Math.min(this.#skipBytes, chunk.length - next);
        this.#skipBytes -= bytes;
        next += bytes;
        if (this.#skipBytes > 0) break;
      } else {
        next += this.#collector.take(chunk, next);
        if (!this.#collector.isComplete) break;
      }
      const outcome = this.#step();
      if (outcome !== 'more') return { next, outcome };
    }
    return { next, outcome: 'more' };
  }

  #step(): Outcome {
    return STATES[this.#state](this, this.#collector.bytes);
  }

  #waitFor(state: State, lengthBytes: number): void {
    this.#state = state;
    this.#collector.expect(lengthBytes);
  }

  clientFlags(bytes: Buffer): Outcome {
    const flags = bytes.readUInt32BE(0);
    const known = nbd.HandshakeFlag.fixedNewstyle | nbd.HandshakeFlag.noZeroes;
    const unknown = flags & ~known;
    if (unknown !== 0) return this.#drop(`Unknown client flags 0x${(unknown >>> 0).toString(16)} received`);
    this.#isFixed = (flags & nbd.HandshakeFlag.fixedNewstyle) !== 0;
    this.#noZeroes = (flags & nbd.HandshakeFlag.noZeroes) !== 0;
    this.#waitFor('optionHeader', nbd.OPTION_REQUEST_BYTES);
    return 'more';
  }

  optionHeader(bytes: Buffer): Outcome {
    const header = decodeOption(bytes);
    if (!header) return this.#drop('Bad magic received');
    const { option, lengthBytes } = header;
    if (lengthBytes > MAX_NBD_REQUEST_BYTES)
      return this.#drop(`len (${lengthBytes}) is larger than max len (${MAX_NBD_REQUEST_BYTES})`);
    if (++this.#options > MAX_OPTIONS) return this.#drop('Too many options');
    // A client that does not speak the fixed handshake cannot read error replies.
    if (!this.#isFixed && option !== Option.exportName)
      return this.#drop(`Unsupported option ${option} (${nameOf(option)})`);
    this.#current = header;
    if (header.lengthBytes > nbd.MAX_OPTION_BYTES) {
      this.#skipBytes = header.lengthBytes;
      this.#waitFor('oversized', 0);
      return 'more';
    }
    this.#waitFor('optionPayload', header.lengthBytes);
    return header.lengthBytes === 0 ? this.#step() : 'more';
  }

  oversized(): Outcome {
    if (this.#current.option === Option.exportName) return this.#drop('Bad length received');
    return this.#finish(this.#reply(OptionReply.errTooBig, 'Option is too long'));
  }

  optionPayload(payload: Buffer): Outcome {
    const { option } = this.#current;
    const rule = OPTIONS.get(option);
    if (this.#trace?.isOn === true)
      this.#trace.say(`option ${option} (${nameOf(option)}) bytes ${payload.length}`);
    const isEarly = this.#needsTls && !this.#isSecure;
    if (isEarly && option === Option.exportName)
      return this.#drop(`Option 0x${option.toString(16)} not permitted before TLS`);
    if (isEarly && option !== Option.startTls && option !== Option.abort) {
      const text = `Option 0x${option.toString(16)} not permitted before TLS`;
      return this.#finish(this.#reply(OptionReply.errTlsRequired, text));
    }
    if (!rule) {
      return this.#finish(this.#reply(OptionReply.errUnsup, `Unsupported option ${option} (<unknown>)`));
    }
    if (rule.isEmpty && payload.length > 0) {
      return this.#finish(this.#reply(OptionReply.errInvalid, `option '${rule.name}' has unexpected length`));
    }
    return this.#finish(rule.run(this, payload, option));
  }

  #finish(outcome: Outcome): Outcome {
    if (outcome === 'more' || outcome === 'secure') this.#waitFor('optionHeader', nbd.OPTION_REQUEST_BYTES);
    return outcome;
  }

  #reply(type: number, payload: string | Buffer = NOTHING): Outcome {
    const bytes = typeof payload === 'string' ? Buffer.from(payload) : payload;
    if (this.#send(encodeOptionReply(this.#current.option, type, bytes))) return 'more';
    return this.#drop('The client does not read its replies');
  }

  #drop(why: string): 'drop' {
    this.#failure = why;
    return 'drop';
  }

  /** Why a client did not come in: what was wrong with it, or what it would have had to say when it hung up. */
  get failure(): string {
    const end = this.#isSecure
      ? 'Cannot read from TLS channel: Software caused connection abort'
      : 'Unexpected end-of-file before all data were read';
    return this.#failure ?? this.#awaited() + end;
  }

  #awaited(): string {
    if (this.#state === 'clientFlags') return 'Failed to read flags: ';
    if (this.#state !== 'optionHeader') return '';
    const { gotBytes } = this.#collector;
    if (gotBytes < 8) return 'Failed to read opts magic: ';
    return gotBytes < 12 ? 'Failed to read option: ' : 'Failed to read option length: ';
  }

  abort(): Outcome {
    this.#reply(OptionReply.ack);
    return 'end';
  }

  startTls(): Outcome {
    if (!this.#needsTls) return this.#reply(OptionReply.errPolicy, 'TLS not configured');
    if (this.#isSecure) return this.#reply(OptionReply.errInvalid, 'TLS already enabled');
    if (this.#reply(OptionReply.ack) === 'drop') return 'drop';
    this.#isSecure = true;
    return 'secure';
  }

  structuredReply(): Outcome {
    if (this.#style === 'extended')
      return this.#reply(OptionReply.errExtendedHeadersRequired, 'extended headers already negotiated');
    if (this.#style !== 'simple')
      return this.#reply(OptionReply.errInvalid, 'structured reply already negotiated');
    this.#style = 'structured';
    return this.#reply(OptionReply.ack);
  }

  extendedHeaders(): Outcome {
    if (this.#style === 'extended')
      return this.#reply(OptionReply.errInvalid, 'extended headers already negotiated');
    this.#style = 'extended';
    return this.#reply(OptionReply.ack);
  }

  list(): Outcome {
    for (const entry of this.#exports.list()) {
      const name = Buffer.from(entry.name);
      const description = Buffer.from(entry.description ?? '');
      const reply = Buffer.concat([uint32(name.length), name, description]);
      if (this.#reply(OptionReply.server, reply) === 'drop') return 'drop';
    }
    return this.#reply(OptionReply.ack);
  }

  /** EXPORT_NAME: no errors, only the connection's end. */
  exportName(payload: Buffer): Outcome {
    const found = this.#exports.find(payload.toString());
    if (!found) return this.#drop('export not found');
    if (this.#style === 'extended') return this.#drop('Extended headers already negotiated');
    const reply = Buffer.alloc(10 + (this.#noZeroes ? 0 : EXPORT_NAME_ZEROES_BYTES));
    writeUint64(reply, 0, found.target.lengthBytes);
    reply.writeUInt16BE(transmissionFlags(found, this.#style), 8);
    this.#send(reply);
    return this.#agree(found);
  }

  info(payload: Buffer, option: number): Outcome {
    const request = this.#decode(() => decodeInfoRequest(payload, option === Option.go ? 'go' : 'info'));
    if (!request) return 'more';
    const found = this.#exports.find(request.name);
    if (!found) return this.#reply(OptionReply.errUnknown, notPresent(request.name));
    if (request.infos.includes(Info.name)) this.#reply(OptionReply.info, infoText(Info.name, found.name));
    if (found.description !== undefined)
      this.#reply(OptionReply.info, infoText(Info.description, found.description));
    this.#reply(OptionReply.info, infoBlockSize());
    this.#reply(
      OptionReply.info,
      infoExport(found.target.lengthBytes, transmissionFlags(found, this.#style)),
    );
    this.#reply(OptionReply.ack);
    return option === Option.go ? this.#agree(found) : 'more';
  }

  listMetaContext(payload: Buffer): Outcome {
    const asked = this.#metaRequest(payload, 'list meta context');
    if (!asked) return 'more';
    const { queries, contexts } = asked;
    const isWanted = (name: string): boolean =>
      queries.length === 0 || queries.some((query) => query === name || isFamilyOf(query, name));
    return this.#answerContexts(contexts, isWanted);
  }

  setMetaContext(payload: Buffer): Outcome {
    if (this.#style === 'simple') {
      return this.#reply(
        OptionReply.errInvalid,
        "request option 'set meta context' when structured reply is not negotiated",
      );
    }
    this.#contexts = undefined;
    const asked = this.#metaRequest(payload, 'set meta context');
    if (!asked) return 'more';
    const { name, queries, contexts } = asked;
    const ids = contexts.flatMap((context, id) => (queries.includes(context.name) ? [id] : []));
    this.#contexts = { exportName: name, ids };
    return this.#answerContexts(contexts, (context) => queries.includes(context));
  }

  #metaRequest(payload: Buffer, what: string): MetaRequest | undefined {
    const request = this.#decode(() => decodeMetaContextRequest(payload, what));
    if (!request) return undefined;
    const found = this.#exports.find(request.name);
    if (found) return { ...request, contexts: contextsOf(found) };
    this.#reply(OptionReply.errUnknown, notPresent(request.name));
    return undefined;
  }

  #answerContexts(contexts: readonly MetaContext[], isWanted: (name: string) => boolean): Outcome {
    for (const [id, { name }] of contexts.entries()) {
      if (!isWanted(name)) continue;
      const reply = Buffer.concat([uint32(id), Buffer.from(name)]);
      if (this.#reply(OptionReply.metaContext, reply) === 'drop') return 'drop';
    }
    return this.#reply(OptionReply.ack);
  }

  /** Undefined after answering ERR_INVALID. */
  #decode<T>(decode: () => T): T | undefined {
    try {
      return decode();
    } catch (error) {
      assert(error instanceof BlockError, String(error));
      this.#reply(OptionReply.errInvalid, error.message);
      return undefined;
    }
  }

  #agree(found: NbdExport): Agreement {
    const all = contextsOf(found);
    const agreed = this.#contexts?.exportName === found.name ? this.#contexts.ids : [];
    const contexts = new Map(agreed.flatMap((id) => (all[id] ? [[id, all[id]]] : [])));
    return { export: found, style: this.#style, contexts };
  }
}

interface MetaRequest {
  name: string;
  queries: readonly string[];
  /** All of the export. */
  contexts: readonly MetaContext[];
}

/** Long names are cut as QEMU cuts them: a client may be told no more than 4096 bytes, and prints less. */
function notPresent(name: string): Buffer {
  const bytes = Buffer.from(name);
  const isLong = bytes.length >= TOLD_NAME_BYTES;
  const told = isLong ? [bytes.subarray(0, TOLD_NAME_BYTES), Buffer.from('...')] : [bytes];
  return Buffer.concat([Buffer.from("export '"), ...told, Buffer.from("' not present")]);
}

/** A query that names a namespace, or QEMU's dirty bitmaps, lists all of it. */
function isFamilyOf(query: string, name: string): boolean {
  return ['base:', 'qemu:', nbd.DIRTY_BITMAP_PREFIX].includes(query) && name.startsWith(query);
}

function infoText(type: number, text: string): Buffer {
  const bytes = Buffer.from(text);
  const out = Buffer.allocUnsafe(2 + bytes.length);
  out.writeUInt16BE(type, 0);
  bytes.copy(out, 2);
  return out;
}

function infoBlockSize(): Buffer {
  const out = Buffer.allocUnsafe(14);
  out.writeUInt16BE(Info.blockSize, 0);
  out.writeUInt32BE(BLOCK_SIZE.minimum, 2);
  out.writeUInt32BE(BLOCK_SIZE.preferred, 6);
  out.writeUInt32BE(MAX_NBD_REQUEST_BYTES, 10);
  return out;
}

function infoExport(lengthBytes: number, flags: number): Buffer {
  const out = Buffer.allocUnsafe(12);
  out.writeUInt16BE(Info.export, 0);
  writeUint64(out, 2, lengthBytes);
  out.writeUInt16BE(flags, 10);
  return out;
}
