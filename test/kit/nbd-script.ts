import { defined } from '../../src/base/assert.js';
import type { Host, HostListener, SocketAddress } from '../../src/host/host.js';
import {
  decodeOption,
  decodeRequest,
  encodeChunkHeader,
  encodeGreeting,
  encodeOptionReply,
  encodeSimpleReply,
  newRequest,
  type Request,
  uint32,
  writeUint64,
} from '../../src/wire/nbd/codec.js';
import * as nbd from '../../src/wire/nbd/constants.js';
import { NbdPeer } from './nbd-peer.js';

export interface ScriptedExport {
  sizeBytes: number;
  /** TransmissionFlag bits. */
  flags: number;
  /** Options that are answered; EXPORT_NAME always is. */
  options: ReadonlySet<number>;
  /** What options are answered with instead (OptionReply); ERR_UNSUP for those not in `options`. */
  refusals?: ReadonlyMap<number, number>;
  handshakeFlags: number;
  blockSize?: readonly [minimum: number, preferred: number, maximum: number];
}

/** A server's handshake by script; then requests and replies are the test's own business. */
export class ScriptedServer {
  readonly peer: NbdPeer;

  constructor(peer: NbdPeer) {
    this.peer = peer;
  }

  /** Runs `body` for each connection; its failures when the client has hung up are nobody's. */
  static listen(
    host: Host,
    address: SocketAddress,
    body: (server: ScriptedServer) => Promise<void>,
  ): Promise<HostListener> {
    return host.net.listen(address, (socket) => {
      body(new ScriptedServer(new NbdPeer(socket))).catch(() => undefined);
    });
  }

  async handshake(entry: ScriptedExport): Promise<void> {
    const { peer } = this;
    peer.send(encodeGreeting(entry.handshakeFlags));
    const noZeroes = (await peer.take(4)).readUInt32BE(0) >= nbd.HandshakeFlag.noZeroes;
    for (;;) {
      const header = defined(decodeOption(await peer.take(nbd.OPTION_REQUEST_BYTES)), 'option');
      await peer.take(header.lengthBytes);
      const { option } = header;
      const reply = (type: number, payload: Buffer = Buffer.alloc(0)): void =>
        peer.send(encodeOptionReply(option, type, payload));
      if (option === nbd.Option.exportName) {
        peer.send(exportBytes(entry), Buffer.alloc(noZeroes ? 0 : 124));
        return;
      }
      const refusal = entry.refusals?.get(option);
      if (refusal !== undefined || !entry.options.has(option)) {
        reply(refusal ?? nbd.OptionReply.errUnsup);
        continue;
      }
      if (option === nbd.Option.setMetaContext)
        reply(nbd.OptionReply.metaContext, Buffer.concat([uint32(9), Buffer.from(nbd.BASE_ALLOCATION)]));
      if (option === nbd.Option.go) {
        if (entry.blockSize) reply(nbd.OptionReply.info, blockSizeBytes(entry.blockSize));
        reply(nbd.OptionReply.info, Buffer.concat([Buffer.alloc(2), exportBytes(entry)]));
      }
      reply(nbd.OptionReply.ack);
      if (option === nbd.Option.go) return;
    }
  }

  /** The next request, and its payload when it is a write. */
  async request(): Promise<Request & { payload: Buffer }> {
    const request = newRequest();
    decodeRequest(await this.peer.take(nbd.REQUEST_BYTES), 0, request, 'simple');
    const payloadBytes = request.command === nbd.Command.write ? request.lengthBytes : 0;
    return { ...request, payload: Buffer.from(await this.peer.take(payloadBytes)) };
  }

  simple(request: Request, error = 0, data: Uint8Array = Buffer.alloc(0)): void {
    const out = Buffer.alloc(nbd.SIMPLE_REPLY_BYTES);
    encodeSimpleReply(out, 0, error, request);
    this.peer.send(out, data);
  }

  chunk(request: Request, flags: number, type: number, payload: Uint8Array): void {
    const out = Buffer.alloc(nbd.STRUCTURED_REPLY_BYTES);
    encodeChunkHeader(out, 0, flags, type, request, payload.length, 'structured');
    this.peer.send(out, payload);
  }
}

function exportBytes({ sizeBytes, flags }: ScriptedExport): Buffer {
  const out = Buffer.alloc(10);
  writeUint64(out, 0, sizeBytes);
  out.writeUInt16BE(flags, 8);
  return out;
}

function blockSizeBytes(sizes: readonly number[]): Buffer {
  return Buffer.concat([Buffer.from([0, nbd.Info.blockSize]), ...sizes.map(uint32)]);
}
