import type { Socket } from 'node:net';
import { connectUnix } from './daemon.js';

/** A small NBD client that shares no code with src/wire/nbd: fixed newstyle, EXPORT_NAME, simple replies, one at a time. */
export class SmallNbd {
  readonly #socket: Socket;
  #received: Buffer = Buffer.alloc(0);
  #wake: (() => void) | undefined;
  #closed = false;
  #cookie = 0;
  sizeBytes = 0;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#wake?.();
    });
    const close = (): void => {
      this.#closed = true;
      this.#wake?.();
    };
    socket.on('close', close);
    socket.on('error', close);
  }

  static async connect(path: string, exportName: string): Promise<SmallNbd> {
    const client = new SmallNbd(await connectUnix(path));
    await client.#take(18);
    const name = Buffer.from(exportName);
    const hello = Buffer.alloc(4 + 16);
    hello.writeUInt32BE(3, 0); // fixed newstyle, no zeroes
    hello.write('IHAVEOPT', 4);
    hello.writeUInt32BE(1, 12); // NBD_OPT_EXPORT_NAME
    hello.writeUInt32BE(name.length, 16);
    client.#socket.write(Buffer.concat([hello, name]));
    const info = await client.#take(10);
    client.sizeBytes = Number(info.readBigUInt64BE(0));
    return client;
  }

  async read(offset: number, length: number): Promise<Buffer> {
    await this.#request(0, offset, length);
    return this.#take(length);
  }

  write(offset: number, data: Buffer): Promise<void> {
    return this.#request(1, offset, data.length, data);
  }

  flush(): Promise<void> {
    return this.#request(3, 0, 0);
  }

  close(): void {
    this.#socket.destroy();
  }

  async #request(
    type: number,
    offset: number,
    length: number,
    data: Buffer = Buffer.alloc(0),
  ): Promise<void> {
    const header = Buffer.alloc(28);
    header.writeUInt32BE(0x25609513, 0);
    header.writeUInt16BE(type, 6);
    header.writeUInt32BE(++this.#cookie, 12);
    header.writeBigUInt64BE(BigInt(offset), 16);
    header.writeUInt32BE(length, 24);
    this.#socket.write(Buffer.concat([header, data]));
    const reply = await this.#take(16);
    if (reply.readUInt32BE(0) !== 0x67446698 || reply.readUInt32BE(12) !== this.#cookie)
      throw new Error('bad NBD reply');
    const error = reply.readUInt32BE(4);
    if (error !== 0) throw new Error(`NBD error ${error}`);
  }

  async #take(length: number): Promise<Buffer> {
    while (this.#received.length < length) {
      if (this.#closed) throw new Error('NBD connection closed');
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const taken = this.#received.subarray(0, length);
    this.#received = this.#received.subarray(length);
    return taken;
  }
}
