import { writeBuffer } from '../../host/whole-buffers.js';
import { IoVector } from '../../base/io-vector.js';
import { BlockError } from '../../base/error.js';
import { KiB } from '../../base/limits.js';
import { tlsEnd, tlsServerEnd, withHostname } from '../../block/objects/tls-end.js';
import type { ObjectRegistry } from '../../block/objects/object-registry.js';
import type { Host, HostFile, HostPipe, HostPipes, SocketAddress } from '../../host/host.js';
import { type ByteStream, SocketStream } from '../../wire/migration/byte-stream.js';
import type { Door } from './destination.js';
import type { MoveSettings, Route } from './settings.js';
import type { MoveTarget } from './target.js';

/** What a machine's state goes over. */
export interface Roads {
  readonly settings: MoveSettings;
  readonly objects: ObjectRegistry;
  /** The descriptor of that name, which is the caller's from then on. */
  readonly takeDescriptor: (name: string) => number | undefined;
}

/** The way out. Errors: what is wrong with it is told before anything is opened. */
export function routeTo(roads: Roads, target: MoveTarget): Route {
  const { host } = roads.settings;
  switch (target.kind) {
    case 'socket':
      return socketRoute(roads, target.address);
    case 'unresolved':
      return once(() => Promise.reject(target.why));
    case 'descriptor':
      return once(openDescriptor(roads, target.name, 'to'));
    case 'command':
      return once(async () => new OneWayStream(pipesOf(host).run(target.argv, 'to')));
    case 'state-file':
      return once(() => FileStream.create(host, target.path, target.offset));
  }
}

function once(open: () => Promise<ByteStream>): Route {
  return { open, canReopen: false };
}

function socketRoute({ settings, objects }: Roads, address: SocketAddress): Route {
  const { host, parameters } = settings;
  const { 'tls-creds': credentials, 'tls-hostname': name } = parameters.values;
  const known = address.type === 'inet' ? address.host : undefined;
  const hostname = name === '' ? known : name;
  const end =
    credentials === ''
      ? undefined
      : (): ReturnType<typeof tlsEnd> => withHostname(tlsEnd(objects, credentials), hostname);
  end?.();
  return {
    canReopen: true,
    async open() {
      const socket = await host.net.connect(address);
      return new SocketStream(end ? await host.net.secure(socket, end()) : socket);
    },
  };
}

/** Sources come in; `take` gets each. Errors: those of listening, of opening, of credentials. */
export async function openDoor(
  roads: Roads,
  target: MoveTarget,
  take: (stream: ByteStream) => void,
): Promise<Door> {
  const { host } = roads.settings;
  switch (target.kind) {
    case 'socket':
      return listen(roads, target.address, take);
    case 'unresolved':
      throw target.why;
    case 'descriptor':
      return comes(openDescriptor(roads, target.name, 'from'), take);
    case 'command':
      return comes(async () => new OneWayStream(pipesOf(host).run(target.argv, 'from')), take);
    case 'state-file':
      return comes(() => FileStream.open(host, target.path, target.offset), take);
  }
}

async function listen(
  { settings, objects }: Roads,
  address: SocketAddress,
  take: (stream: ByteStream) => void,
): Promise<Door> {
  const { host, parameters, warn } = settings;
  const { 'tls-creds': credentials, 'tls-authz': authz } = parameters.values;
  const end =
    credentials === '' ? undefined : tlsServerEnd(objects, credentials, authz === '' ? undefined : authz);
  const listener = await host.net.listen(address, (socket) => {
    if (!end) return take(new SocketStream(socket));
    void host.net.secure(socket, end()).then(
      (secured) => take(new SocketStream(secured)),
      (error: unknown) => warn(error instanceof Error ? error.message : String(error)),
    );
  });
  return { address: listener.address, close: () => listener.close() };
}

/** What can be read once only. */
async function comes(open: () => Promise<ByteStream>, take: (stream: ByteStream) => void): Promise<Door> {
  take(await open());
  return { address: undefined, close: async () => undefined };
}

/** It is taken at once, so that what is wrong with it is told at once. */
function openDescriptor(
  { settings, takeDescriptor }: Roads,
  name: string | number,
  direction: 'to' | 'from',
): () => Promise<ByteStream> {
  const fd = typeof name === 'number' ? name : takeDescriptor(name);
  const { host } = settings;
  const pipes = pipesOf(host);
  const kind = fd === undefined ? undefined : pipes.kindOf(fd);
  if (fd === undefined || kind === undefined)
    throw new BlockError('not-found', `File descriptor named '${name}' has not been found`);
  return async () => {
    if (kind === 'socket') return new SocketStream(await host.net.connect({ type: 'fd', fd }));
    return new OneWayStream(pipes.open(fd, direction));
  };
}

function pipesOf({ pipes }: Host): HostPipes {
  if (pipes) return pipes;
  throw new BlockError('unsupported', 'This machine has no pipes');
}

/** A pipe as a byte stream. */
class OneWayStream implements ByteStream {
  readonly isOneWay = true;
  readonly #pipe: HostPipe;

  constructor(pipe: HostPipe) {
    this.#pipe = pipe;
  }

  read(): Promise<Buffer | undefined> {
    return this.#pipe.read();
  }

  write(bytes: Uint8Array): Promise<void> {
    return this.#pipe.write(bytes);
  }

  finish(): Promise<void> {
    return this.#pipe.finish();
  }

  destroy(): void {
    this.#pipe.destroy();
  }
}

const READ_BYTES = 256 * KiB;

/** A file from an offset on. */
class FileStream implements ByteStream {
  readonly isOneWay = true;
  readonly #file: HostFile;
  #position: number;
  #closed: Promise<void> | undefined;

  private constructor(file: HostFile, offset: number) {
    this.#file = file;
    this.#position = offset;
  }

  static async create({ files }: Host, path: string, offset: number): Promise<FileStream> {
    const file = await files.open(path, { write: true, create: true });
    await file.truncate(offset);
    return new FileStream(file, offset);
  }

  static async open({ files }: Host, path: string, offset: number): Promise<FileStream> {
    return new FileStream(await files.open(path, { write: false }), offset);
  }

  async read(): Promise<Buffer | undefined> {
    if (this.#closed) throw new BlockError('closed', 'The file is closed');
    const lengthBytes = Math.min(READ_BYTES, this.#file.sizeBytes() - this.#position);
    if (lengthBytes <= 0) return undefined;
    const bytes = Buffer.alloc(lengthBytes);
    await this.#file.read(this.#position, IoVector.of(bytes), 0, lengthBytes);
    this.#position += lengthBytes;
    return bytes;
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (this.#closed) throw new BlockError('closed', 'The file is closed');
    await writeBuffer(this.#file, this.#position, bytes);
    this.#position += bytes.length;
  }

  async finish(): Promise<void> {
    await this.#file.flush();
    this.destroy();
    await this.#closed;
  }

  destroy(): void {
    this.#closed ??= this.#file.close();
    this.#closed.catch(() => undefined);
  }
}

/** Not told by query-migrate, as in QEMU. */
export class UnknownProtocol extends BlockError {
  constructor() {
    super('invalid', "Parameter 'uri' expects a valid migration protocol");
  }
}
