import { BlockError } from '../../src/base/error.js';
import { defined } from '../../src/base/assert.js';
import type { Host, HostSocket, SocketAddress } from '../../src/host/host.js';
import { ByteReader } from '../../src/wire/nbd/byte-reader.js';
import {
  decodeOptionReply,
  decodeReplyHeader,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  encodeRequest,
  type HeaderStyle,
  type OptionReplyHeader,
  type ReplyHeader,
  replyHeaderBytes,
  requestBytes,
  uint32,
} from '../../src/wire/nbd/codec.js';
import * as nbd from '../../src/wire/nbd/constants.js';

/** One end of an NBD connection that says byte for byte what a test wants. */
export class NbdPeer {
  readonly socket: HostSocket;
  readonly #reader = new ByteReader();
  isClosed = false;
  /** Why, where the other end has not just closed it. */
  closeError: Error | undefined;
  /** What go() agreed upon. */
  style: HeaderStyle = 'simple';

  constructor(socket: HostSocket) {
    this.socket = socket;
    socket.start({
      onData: (chunk) => this.#reader.push(chunk),
      onClose: (error) => {
        this.isClosed = true;
        this.closeError = error;
        this.#reader.fail(new BlockError('closed', 'peer closed'));
      },
    });
  }

  static async connect(host: Host, address: SocketAddress): Promise<NbdPeer> {
    return new NbdPeer(await host.net.connect(address));
  }

  /** Connects and exchanges greeting and flags. */
  static async greet(host: Host, address: SocketAddress, flags = 3): Promise<NbdPeer> {
    const peer = await NbdPeer.connect(host, address);
    await peer.take(nbd.GREETING_BYTES);
    peer.send(uint32(flags));
    return peer;
  }

  send(...parts: Uint8Array[]): void {
    this.socket.write(Buffer.concat(parts));
  }

  take(lengthBytes: number): Promise<Buffer> {
    return this.#reader.take(lengthBytes);
  }

  /** Bytes that came until the other end closed. */
  async untilClosed(): Promise<Buffer> {
    const parts: Buffer[] = [];
    try {
      for (;;) parts.push(Buffer.from(await this.take(1)));
    } catch {
      return Buffer.concat(parts);
    }
  }

  /** Replies to an option up to the final one. */
  async option(option: number, payload: Uint8Array = Buffer.alloc(0)): Promise<OptionAnswer[]> {
    this.send(encodeOption(option, payload));
    const answers: OptionAnswer[] = [];
    for (;;) {
      const bytes = await this.take(nbd.OPTION_REPLY_BYTES);
      const header = defined(decodeOptionReply(bytes), 'option reply');
      const content = Buffer.from(await this.take(header.lengthBytes));
      answers.push({ ...header, payload: content });
      if (header.type === nbd.OptionReply.ack || header.type >= 2 ** 31) return answers;
    }
  }

  /** Structured replies, base:allocation and GO, as a client of today asks for them. */
  async go(
    name: string,
    { structured = true, extended = false, contexts = [nbd.BASE_ALLOCATION] } = {},
  ): Promise<OptionAnswer[]> {
    if (structured || extended) {
      await this.option(extended ? nbd.Option.extendedHeaders : nbd.Option.structuredReply);
      this.style = extended ? 'extended' : 'structured';
      const query = encodeMetaContextRequest({ name, queries: contexts });
      await this.option(nbd.Option.setMetaContext, query);
    }
    return this.option(nbd.Option.go, encodeInfoRequest({ name, infos: [nbd.Info.blockSize] }));
  }

  request(command: number, offset: number, lengthBytes: number, more: RequestExtras = {}): void {
    const out = Buffer.alloc(requestBytes(this.style));
    const { flags = 0, cookie = 1, payload = Buffer.alloc(0) } = more;
    const request = { command, flags, offset, lengthBytes, cookieHigh: 0, cookieLow: cookie };
    encodeRequest(out, 0, request, this.style);
    this.send(out, payload);
  }

  /** The next reply or chunk; `dataBytes` follow a simple one. */
  async reply(dataBytes = 0): Promise<Reply> {
    const magic = Buffer.from(await this.take(4));
    const rest = await this.take(replyHeaderBytes(magic.readUInt32BE(0)) - 4);
    const header = decodeReplyHeader(Buffer.concat([magic, rest]));
    const isSimple = header.style === 'simple';
    const payload = await this.take(isSimple ? (header.error ? 0 : dataBytes) : header.lengthBytes);
    const isError = !isSimple && header.type >= 0x8000;
    return { ...header, payload, failure: isError ? payload.readUInt32BE(0) : header.error };
  }

  /** A request and its only reply. */
  ask(command: number, offset: number, lengthBytes: number, more: RequestExtras = {}): Promise<Reply> {
    this.request(command, offset, lengthBytes, more);
    return this.reply(command === nbd.Command.read ? lengthBytes : 0);
  }
}

export interface RequestExtras {
  flags?: number;
  cookie?: number;
  payload?: Uint8Array;
}

export interface OptionAnswer extends OptionReplyHeader {
  payload: Buffer;
}

export interface Reply extends ReplyHeader {
  payload: Buffer;
  /** NBD error number, 0 for success. */
  failure: number;
}
