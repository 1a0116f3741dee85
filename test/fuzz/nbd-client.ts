import assert from 'node:assert/strict';
import { join } from 'node:path';
import { BlockError } from '../../src/base/error.js';
import { KiB, MiB } from '../../src/base/limits.js';
import type { HostListener, SocketAddress } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';
import type { SeededRandom } from '../../src/host/simulated-random.js';
import { NbdSession } from '../../src/wire/nbd/session.js';
import {
  chunkHeaderBytes,
  decodeOption,
  decodeRequest,
  encodeChunkHeader,
  encodeExtents,
  encodeGreeting,
  encodeOptionReply,
  encodeSimpleReply,
  extentsBytes,
  type HeaderStyle,
  newRequest,
  type Request,
  requestBytes,
  uint32,
  writeUint64,
} from '../../src/wire/nbd/codec.js';
import {
  BASE_ALLOCATION,
  Command,
  Info,
  Option,
  OptionReply,
  ReplyType,
} from '../../src/wire/nbd/constants.js';
import { NbdPeer } from '../kit/nbd-peer.js';
import type { UnderFuzz } from './main.js';
import { damaged, oddNumber, pick } from './random-bytes.js';

const DISK_BYTES = MiB;
const CONTEXT = 7;
const WAITS_MS = 500;
const host = createRealHost();

/** Clients of ours that meet a server each, which says what it likes. */
export class ClientUnderFuzz implements UnderFuzz {
  readonly #folder: string;
  #next = 0;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  static start(folder: string): Promise<ClientUnderFuzz> {
    return Promise.resolve(new ClientUnderFuzz(folder));
  }

  async meet(random: SeededRandom): Promise<void> {
    const address: SocketAddress = { type: 'unix', path: join(this.#folder, `s${this.#next++ % 64}`) };
    const peers = new Set<NbdPeer>();
    const listener: HostListener = await host.net.listen(address, (socket) => {
      const peer = new NbdPeer(socket);
      peers.add(peer);
      // It ends when the client has hung up.
      new HostileServer(peer, random.fork()).run().catch(() => peer.socket.destroy());
    });
    try {
      const session = await NbdSession.open({
        host,
        address,
        exportName: 'disk',
        handshakeTimeoutMs: WAITS_MS,
        requestTimeoutMs: WAITS_MS,
        reconnectDelayMs: random.chance(0.3) ? 50 : 0,
        openTimeoutMs: 0,
      });
      await use(session, random);
    } catch (error) {
      assert.ok(error instanceof BlockError, String(error));
    } finally {
      for (const peer of peers) peer.socket.destroy();
      await listener.close();
    }
  }

  check(): Promise<void> {
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** Requests of all kinds: each ends, well or with a BlockError, and nothing is written beyond a buffer. */
async function use(session: NbdSession, random: SeededRandom): Promise<void> {
  const size = Math.min(session.info.lengthBytes, DISK_BYTES);
  const around = Buffer.alloc(96 * KiB, 0xee);
  const inner = around.subarray(16 * KiB, 80 * KiB);
  const requests = Array.from({ length: 12 }, () => {
    const lengthBytes = 512 * (1 + random.below(16));
    const offset = 512 * random.below(Math.max(1, Math.floor((size - lengthBytes) / 512)));
    switch (random.below(7)) {
      case 0:
        return session.read(offset, inner.subarray(0, Math.min(inner.length, size)));
      case 1:
        return session.write(offset, Buffer.alloc(lengthBytes, 1), 0);
      case 2:
        return session.writeZeroes(offset, lengthBytes, 0);
      case 3:
        return session.trim(offset, lengthBytes);
      case 4:
        return session.flush();
      case 5:
        return session.info.context === undefined
          ? session.flush()
          : session.blockStatus(offset, lengthBytes);
      default:
        return session.read(offset, Buffer.alloc(lengthBytes));
    }
  });
  for (const result of await Promise.allSettled(requests as Array<Promise<unknown>>))
    if (result.status === 'rejected') assert.ok(result.reason instanceof BlockError, String(result.reason));
  await session.close();
  for (const rest of [around.subarray(0, 16 * KiB), around.subarray(80 * KiB)])
    assert.ok(
      rest.every((byte) => byte === 0xee),
      'a reply was written beside the buffer',
    );
}

/** Says mostly what a server should, and anything else now and then. */
class HostileServer {
  readonly #peer: NbdPeer;
  readonly #random: SeededRandom;
  readonly #damage: number;
  #style: HeaderStyle = 'simple';

  constructor(peer: NbdPeer, random: SeededRandom) {
    this.#peer = peer;
    this.#random = random;
    this.#damage = pick(random, [0, 0, 0.02, 0.1]);
  }

  async run(): Promise<void> {
    this.#send(encodeGreeting(this.#random.chance(0.9) ? 3 : this.#random.below(65_536)));
    await this.#peer.take(4);
    while (!(await this.#answerOption()));
    for (;;) await this.#answerRequest();
  }

  #send(bytes: Buffer): void {
    this.#peer.send(damaged(this.#random, bytes, this.#damage));
  }

  /** Answers whether the transmission begins. */
  async #answerOption(): Promise<boolean> {
    const random = this.#random;
    const header = decodeOption(await this.#peer.take(16));
    if (!header) throw new Error('the client says no option');
    await this.#peer.take(header.lengthBytes);
    const { option } = header;
    const reply = (type: number, payload: Buffer = Buffer.alloc(0)): void =>
      this.#send(encodeOptionReply(random.chance(0.99) ? option : random.below(20), type, payload));
    if (random.chance(0.1)) {
      reply(random.chance(0.7) ? pick(random, Object.values(OptionReply)) : random.below(2 ** 32));
      return false;
    }
    switch (option) {
      case Option.extendedHeaders:
        this.#style = 'extended';
        break;
      case Option.structuredReply:
        this.#style = 'structured';
        break;
      case Option.setMetaContext:
        reply(OptionReply.metaContext, Buffer.concat([uint32(CONTEXT), Buffer.from(BASE_ALLOCATION)]));
        break;
      case Option.exportName:
        this.#send(this.#exportBytes());
        return true;
      case Option.go: {
        const sizes = random.chance(0.9) ? [1, 4096, 32 * MiB] : [0, 1, 2].map(() => random.below(2 ** 32));
        reply(OptionReply.info, Buffer.concat([Buffer.from([0, Info.blockSize]), ...sizes.map(uint32)]));
        reply(OptionReply.info, Buffer.concat([Buffer.alloc(2), this.#exportBytes()]));
      }
    }
    reply(OptionReply.ack);
    return option === Option.go;
  }

  #exportBytes(): Buffer {
    const out = Buffer.alloc(10);
    writeUint64(out, 0, this.#random.chance(0.9) ? DISK_BYTES : oddNumber(this.#random, DISK_BYTES));
    out.writeUInt16BE(this.#random.chance(0.8) ? 0x16d : this.#random.below(65_536), 8);
    return out;
  }

  async #answerRequest(): Promise<void> {
    const random = this.#random;
    const request = newRequest();
    const bytes = await this.#peer.take(requestBytes(this.#style));
    if (!decodeRequest(bytes, 0, request, this.#style)) throw new Error('the client asks nothing');
    if (request.command === Command.write) await this.#peer.take(request.lengthBytes);
    if (random.chance(0.02)) return this.#peer.socket.destroy();
    // Never answered.
    if (random.chance(0.01)) return;
    if (random.chance(0.02)) request.cookieLow = random.below(64);
    if (random.chance(0.02)) return this.#send(random.bytes(random.below(200)));
    if (this.#style === 'simple') this.#simple(request, random.chance(0.1) ? random.below(200) : 0);
    else if (random.chance(0.1)) this.#chunk(request, random.below(4), this.#anyType(), this.#anyPayload());
    else this.#answerInChunks(request);
  }

  #anyType(): number {
    return this.#random.chance(0.8)
      ? pick(this.#random, Object.values(ReplyType))
      : this.#random.below(65_536);
  }

  #anyPayload(): Buffer {
    return this.#random.bytes(this.#random.below(this.#random.chance(0.9) ? 64 : 4096));
  }

  #simple(request: Request, error: number): void {
    const data = error === 0 && request.command === Command.read ? Buffer.alloc(request.lengthBytes, 5) : [];
    const out = Buffer.alloc(16);
    encodeSimpleReply(out, 0, error, request);
    this.#send(Buffer.concat([out, Buffer.from(data)]));
  }

  #answerInChunks(request: Request): void {
    const random = this.#random;
    const { command, offset, lengthBytes } = request;
    if (command === Command.read) {
      for (let at = 0; at < lengthBytes;) {
        const bytes = Math.min(lengthBytes - at, 512 * (1 + random.below(32)));
        const head = Buffer.alloc(8);
        writeUint64(head, 0, random.chance(0.99) ? offset + at : oddNumber(random, DISK_BYTES));
        const isHole = random.chance(0.3);
        const payload = isHole ? [head, uint32(bytes)] : [head, Buffer.alloc(bytes, 5)];
        this.#chunk(request, 0, isHole ? ReplyType.offsetHole : ReplyType.offsetData, Buffer.concat(payload));
        at += bytes;
      }
    } else if (command === Command.blockStatus) {
      const extents = Array.from({ length: 1 + random.below(3) }, () => ({
        lengthBytes: oddNumber(random, DISK_BYTES) % 2 ** 32,
        state: random.below(5),
      }));
      const payload = Buffer.alloc(extentsBytes(extents.length, this.#style));
      encodeExtents(payload, 0, random.chance(0.95) ? CONTEXT : random.below(9), extents, this.#style);
      const type = this.#style === 'extended' ? ReplyType.blockStatusExtended : ReplyType.blockStatus;
      this.#chunk(request, random.below(2), type, payload);
    }
    if (random.chance(0.98)) this.#chunk(request, 1, ReplyType.none, Buffer.alloc(0));
  }

  #chunk(request: Request, flags: number, type: number, payload: Buffer): void {
    const head = Buffer.alloc(chunkHeaderBytes(this.#style));
    encodeChunkHeader(head, 0, flags, type, request, payload.length, this.#style);
    this.#send(Buffer.concat([head, payload]));
  }
}
