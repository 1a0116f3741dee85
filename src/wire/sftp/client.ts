import { assert } from '../../base/assert.js';
import { type Deferred, deferred } from '../../base/async.js';
import { BlockError, errnoError } from '../../base/error.js';
import { ByteCollector } from '../nbd/byte-collector.js';
import {
  malformed,
  MAX_PACKET_BYTES,
  PACKET_HEAD_BYTES,
  PacketReader,
  PacketWriter,
  SAFE_DATA_BYTES,
  StatusCode,
  Type,
  VERSION,
} from './codec.js';

const LENGTH_BYTES = 4;
const FSYNC = 'fsync@openssh.com';
const LIMITS = 'limits@openssh.com';

/** A status that is not "ok". */
export class SftpError extends BlockError {
  readonly code: number;

  constructor(code: number, text: string) {
    const errno = ERRNO.get(code) ?? 'EIO';
    super(errnoError(errno).kind, `SFTP server: ${text}`, { errno });
    this.code = code;
  }
}

const ERRNO = new Map<number, string>([
  [StatusCode.noSuchFile, 'ENOENT'],
  [StatusCode.permissionDenied, 'EACCES'],
  [StatusCode.unsupported, 'ENOTSUP'],
]);

interface Reply {
  type: number;
  body: PacketReader;
}

/** What an open file is called by the server. */
export type SftpHandle = Buffer;

/**
 * A client of SFTP version 3 over any stream: `send` writes to it, and what comes from it is given to receive(). Requests
 * may be under way together. Errors of each: SftpError; corrupt; that of end().
 */
export class SftpClient {
  readonly #send: (bytes: Uint8Array) => void;
  readonly #packet = new ByteCollector();
  #isLength = true;
  #nextId = 0;
  readonly #waiting = new Map<number, Deferred<Reply>>();
  readonly #version = deferred<Reply>();
  #extensions = new Set<string>();
  #maxReadBytes = SAFE_DATA_BYTES;
  #maxWriteBytes = SAFE_DATA_BYTES;
  #end: BlockError | undefined;

  constructor(send: (bytes: Uint8Array) => void) {
    this.#send = send;
    this.#packet.expect(LENGTH_BYTES);
    this.#version.promise.catch(() => undefined);
  }

  /** Begins the conversation. */
  async start(): Promise<void> {
    this.#send(new PacketWriter(Type.init).uint32(VERSION).finish());
    const { type, body } = await this.#version.promise;
    if (type !== Type.version || body.uint32() !== VERSION)
      throw new BlockError('unsupported', 'The server does not speak version 3 of SFTP');
    while (!body.isAtEnd) {
      this.#extensions.add(body.string().toString('latin1'));
      body.string();
    }
    if (this.#extensions.has(LIMITS)) await this.#askLimits();
  }

  get maxReadBytes(): number {
    return this.#maxReadBytes;
  }

  get maxWriteBytes(): number {
    return this.#maxWriteBytes;
  }

  /** The server can make files durable. */
  get canFlush(): boolean {
    return this.#extensions.has(FSYNC);
  }

  /** What came from the server; it may be cut anywhere. What is no SFTP ends the conversation. */
  receive(chunk: Buffer): void {
    if (this.#end) return;
    try {
      for (let at = 0; at < chunk.length;) {
        at += this.#packet.take(chunk, at);
        if (this.#packet.isComplete) this.#step();
      }
    } catch (error) {
      assert(error instanceof BlockError, 'only what was sent can be wrong');
      this.end(error);
    }
  }

  /** Nothing comes any more: all that waits fails, and what is asked later. */
  end(error: BlockError): void {
    this.#end ??= error;
    this.#version.reject(this.#end);
    for (const reply of this.#waiting.values()) reply.reject(this.#end);
    this.#waiting.clear();
  }

  async open(path: string, flags: number, mode = 0o644): Promise<SftpHandle> {
    const packet = this.#request(Type.open, (writer) => writer.string(path).uint32(flags).permissions(mode));
    const { type, body } = await packet;
    if (type !== Type.handle) throw statusError(type, body);
    return Buffer.from(body.string());
  }

  async close(handle: SftpHandle): Promise<void> {
    checkOk(await this.#request(Type.close, (writer) => writer.string(handle)));
  }

  async sizeOf(handle: SftpHandle): Promise<number> {
    const { type, body } = await this.#request(Type.fstat, (writer) => writer.string(handle));
    if (type !== Type.attributes) throw statusError(type, body);
    const size = body.size();
    if (size === undefined)
      throw new BlockError('unsupported', 'The server does not say how long the file is');
    return size;
  }

  async setSize(handle: SftpHandle, sizeBytes: number): Promise<void> {
    checkOk(await this.#request(Type.setStat, (writer) => writer.string(handle).size(sizeBytes)));
  }

  /** At most maxReadBytes; answers how many came: 0 at the file's end. */
  async read(handle: SftpHandle, offset: number, target: Uint8Array): Promise<number> {
    const { type, body } = await this.#request(Type.read, (writer) =>
      writer.string(handle).uint64(offset).uint32(target.length),
    );
    if (type === Type.status) {
      const code = body.uint32();
      if (code === StatusCode.endOfFile) return 0;
      throw new SftpError(code, body.string().toString());
    }
    if (type !== Type.data) throw malformed();
    const bytes = body.string();
    if (bytes.length === 0 || bytes.length > target.length) throw malformed();
    target.set(bytes);
    return bytes.length;
  }

  /** At most maxWriteBytes, which may be changed once this returned its promise. */
  async write(handle: SftpHandle, offset: number, bytes: Uint8Array): Promise<void> {
    checkOk(await this.#request(Type.write, (writer) => writer.string(handle).uint64(offset).string(bytes)));
  }

  /** Where it can (canFlush). */
  async flush(handle: SftpHandle): Promise<void> {
    checkOk(await this.#request(Type.extended, (writer) => writer.string(FSYNC).string(handle)));
  }

  async #askLimits(): Promise<void> {
    const { type, body } = await this.#request(Type.extended, (writer) => writer.string(LIMITS));
    if (type !== Type.extendedReply) return;
    const most = Math.min(body.uint64() || MAX_PACKET_BYTES, MAX_PACKET_BYTES) - PACKET_HEAD_BYTES;
    const limit = (told: number): number =>
      Math.max(SAFE_DATA_BYTES, Math.min(told || SAFE_DATA_BYTES, most));
    this.#maxReadBytes = limit(body.uint64());
    this.#maxWriteBytes = limit(body.uint64());
  }

  #request(type: number, fill: (writer: PacketWriter) => PacketWriter): Promise<Reply> {
    if (this.#end) return Promise.reject(this.#end);
    const id = this.#nextId;
    this.#nextId = (id + 1) % 2 ** 32;
    const reply = deferred<Reply>();
    this.#waiting.set(id, reply);
    this.#send(fill(new PacketWriter(type).uint32(id)).finish());
    return reply.promise;
  }

  /** A length or a packet is complete. */
  #step(): void {
    const { bytes } = this.#packet;
    if (this.#isLength) {
      const lengthBytes = bytes.readUInt32BE();
      if (lengthBytes === 0 || lengthBytes > MAX_PACKET_BYTES + PACKET_HEAD_BYTES) throw malformed();
      this.#packet.expect(lengthBytes);
    } else {
      this.#answer(Buffer.from(bytes));
      this.#packet.expect(LENGTH_BYTES);
    }
    this.#isLength = !this.#isLength;
  }

  #answer(packet: Buffer): void {
    const body = new PacketReader(packet);
    const type = body.uint8();
    if (type === Type.version) return this.#version.resolve({ type, body });
    const id = body.uint32();
    const reply = this.#waiting.get(id);
    if (!reply) throw malformed();
    this.#waiting.delete(id);
    reply.resolve({ type, body });
  }
}

function checkOk({ type, body }: Reply): void {
  if (type !== Type.status) throw malformed();
  const code = body.uint32();
  if (code !== StatusCode.ok) throw new SftpError(code, body.string().toString());
}

/** Of an answer that is not the one that was hoped for. */
function statusError(type: number, body: PacketReader): BlockError {
  return type === Type.status ? new SftpError(body.uint32(), body.string().toString()) : malformed();
}
