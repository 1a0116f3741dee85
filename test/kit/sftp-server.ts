import { BlockError } from '../../src/base/error.js';
import type { Host, HostPipes, HostProgram, ProgramHandler } from '../../src/host/host.js';
import { OpenFlag, PacketReader, PacketWriter, StatusCode, Type } from '../../src/wire/sftp/codec.js';

/** An SFTP server that is an `ssh` program to a host; its files are in memory. */
export class SftpServer {
  readonly files = new Map<string, Buffer>();
  /** The words of each program that was started. */
  readonly commands: string[][] = [];
  readonly requests: number[] = [];
  /** What a program says on standard error when it is started. */
  says = '';
  /** It ends at once. */
  refuses = false;
  extensions = ['fsync@openssh.com'];
  /** Longest answer to a read. */
  mostBytes = 32 * 1024;
  /** Packets of these types have no answer. */
  silentTypes = new Set<number>();
  /** What it sends in place of its answers to these types. */
  wrong = new Map<number, Buffer>();
  readonly #programs = new Set<Program>();

  /** A host whose programs these are. */
  hostOver(host: Host): Host {
    const pipes: HostPipes = {
      run: () => {
        throw new BlockError('unsupported', 'only programs to talk to');
      },
      open: () => {
        throw new BlockError('unsupported', 'only programs to talk to');
      },
      openNamed: () => {
        throw new BlockError('unsupported', 'only programs to talk to');
      },
      kindOf: () => undefined,
      talk: (argv, handler) => this.#talk(argv, handler),
    };
    return { ...host, pipes };
  }

  /** All programs end now. */
  end(how = new BlockError('closed', 'ended by SIGKILL')): void {
    for (const program of [...this.#programs]) program.end(how);
  }

  #talk(argv: readonly string[], handler: ProgramHandler): HostProgram {
    this.commands.push([...argv]);
    const program = new Program(this, handler, () => this.#programs.delete(program));
    this.#programs.add(program);
    queueMicrotask(() => {
      if (this.says !== '') handler.onErrorText(Buffer.from(this.says));
      if (this.refuses) program.end(new BlockError('closed', 'ended with status 255'));
    });
    return program;
  }
}

class Program implements HostProgram {
  readonly #server: SftpServer;
  readonly #handler: ProgramHandler;
  readonly #forget: () => void;
  readonly #open = new Map<string, string>();
  #input = Buffer.alloc(0);
  #hasEnded = false;

  constructor(server: SftpServer, handler: ProgramHandler, forget: () => void) {
    this.#server = server;
    this.#handler = handler;
    this.#forget = forget;
  }

  end(how: BlockError): void {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    this.#forget();
    this.#handler.onEnd(how);
  }

  destroy(): void {
    setImmediate(() => this.end(new BlockError('closed', 'ended by SIGTERM')));
  }

  write(bytes: Uint8Array): void {
    this.#input = Buffer.concat([this.#input, bytes]);
    for (;;) {
      if (this.#input.length < 4) return;
      const end = 4 + this.#input.readUInt32BE();
      if (this.#input.length < end) return;
      const packet = Buffer.from(this.#input.subarray(4, end));
      this.#input = this.#input.subarray(end);
      this.#serve(new PacketReader(packet));
    }
  }

  #serve(packet: PacketReader): void {
    const type = packet.uint8();
    this.#server.requests.push(type);
    if (this.#server.silentTypes.has(type)) return;
    const answer = this.#server.wrong.get(type) ?? this.#answer(type, packet).finish();
    setImmediate(() => {
      // Cut in two, as a pipe may do.
      if (this.#hasEnded) return;
      const half = Math.floor(answer.length / 2);
      this.#handler.onData(Buffer.from(answer.subarray(0, half)));
      this.#handler.onData(Buffer.from(answer.subarray(half)));
    });
  }

  #answer(type: number, packet: PacketReader): PacketWriter {
    const { files, extensions, mostBytes } = this.#server;
    if (type === Type.init) {
      const version = new PacketWriter(Type.version).uint32(3);
      for (const name of extensions) version.string(name).string('1');
      return version;
    }
    const id = packet.uint32();
    const status = (code: number, text: string): PacketWriter =>
      new PacketWriter(Type.status).uint32(id).uint32(code).string(text).string('');
    if (type === Type.open) {
      const path = packet.string().toString();
      const flags = packet.uint32();
      const isNew = flags >= OpenFlag.create;
      if (!isNew && !files.has(path)) return status(StatusCode.noSuchFile, 'No such file');
      if (isNew) files.set(path, Buffer.alloc(0));
      const handle = `handle ${this.#open.size}`;
      this.#open.set(handle, path);
      return new PacketWriter(Type.handle).uint32(id).string(handle);
    }
    const extension = type === Type.extended ? packet.string().toString() : '';
    const path = this.#open.get(packet.string().toString()) ?? '';
    const content = files.get(path) ?? Buffer.alloc(0);
    switch (type) {
      case Type.fstat:
        return new PacketWriter(Type.attributes).uint32(id).size(content.length);
      case Type.read: {
        const offset = packet.uint64();
        const bytes = content.subarray(offset, offset + Math.min(packet.uint32(), mostBytes));
        if (bytes.length === 0) return status(StatusCode.endOfFile, 'End of file');
        return new PacketWriter(Type.data).uint32(id).string(bytes);
      }
      case Type.write: {
        const offset = packet.uint64();
        const bytes = packet.string();
        const grown = Buffer.alloc(Math.max(content.length, offset + bytes.length));
        content.copy(grown);
        bytes.copy(grown, offset);
        files.set(path, grown);
        return status(StatusCode.ok, 'Success');
      }
      case Type.setStat: {
        const changed = Buffer.alloc(packet.size() ?? 0);
        content.copy(changed);
        files.set(path, changed);
        return status(StatusCode.ok, 'Success');
      }
      case Type.extended:
        return extension === 'fsync@openssh.com' ? status(0, '') : status(StatusCode.unsupported, 'no');
      default:
        return status(type === Type.close ? StatusCode.ok : StatusCode.unsupported, 'x');
    }
  }
}
