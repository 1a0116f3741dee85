import { writeBuffer } from '../../host/whole-buffers.js';
import { IoVector } from '../../base/io-vector.js';
import type { CancelSignal } from '../../base/cancel-signal.js';
import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { KiB } from '../../base/limits.js';
import { tlsEnd, tlsServerEnd, withHostname } from '../../block/objects/tls-end.js';
import type { ObjectRegistry } from '../../block/objects/object-registry.js';
import type {
  Host,
  HostFile,
  HostPipe,
  HostPipes,
  HostSocket,
  SocketAddress,
  TlsEnd,
} from '../../host/host.js';
import { type ByteStream, SocketStream } from '../../wire/migration/byte-stream.js';
import type { Door, DoorTls, PassedDoor } from './destination.js';
import type { MoveSettings, Route } from './settings.js';
import type { MoveTarget } from './target.js';

/** How long a connection may take to be there, secured where it is to be. */
const CONNECT_MS = 30_000;

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
      return descriptorRoute(roads, target.name);
    case 'command':
      clientTls(roads).refuse();
      return once(async () => new OneWayStream(pipesOf(host).run(target.argv, 'to')));
    case 'state-file':
      clientTls(roads).refuse();
      return once(() => FileStream.create(host, target.path, target.offset));
  }
}

function once(open: () => Promise<ByteStream>): Route {
  return { open, canReopen: false };
}

function socketRoute(roads: Roads, address: SocketAddress): Route {
  const { host } = roads.settings;
  const tls = clientTls(roads, address.type === 'inet' ? address.host : undefined);
  return {
    canReopen: true,
    async open(unwanted) {
      const endMs = host.clock.nowMs() + CONNECT_MS;
      const socket = await connectedTo(host, address, unwanted);
      if (!tls.end) return new SocketStream(socket);
      const forget = unwanted.onCancel(() => socket.destroy());
      try {
        return new SocketStream(await secured(host, socket, tls.end(), endMs));
      } catch (error) {
        unwanted.check();
        throw error;
      } finally {
        forget();
      }
    },
  };
}

/** Errors: those of connecting; ECANCELED. */
async function connectedTo(
  { net }: Host,
  address: SocketAddress,
  unwanted: CancelSignal,
): Promise<HostSocket> {
  const connecting = net.connect(address, { timeoutMs: CONNECT_MS });
  try {
    return await unwanted.during(connecting);
  } catch (error) {
    // One that comes later is nobody's.
    connecting.then(
      (socket) => socket.destroy(),
      () => undefined,
    );
    throw error;
  }
}

/** Errors: those of the handshake; timeout where the other end says nothing. */
async function secured(
  { net, clock }: Host,
  socket: HostSocket,
  end: TlsEnd,
  endMs: number,
): Promise<HostSocket> {
  let isLate = false;
  const timer = clock.setTimer(Math.max(endMs - clock.nowMs(), 0), () => {
    isLate = true;
    socket.destroy();
  });
  try {
    return await net.secure(socket, end);
  } catch (error) {
    if (!isLate) throw error;
    throw new BlockError('timeout', 'TLS handshake failed: the other end does not answer', { cause: error });
  } finally {
    timer.cancel();
  }
}

function descriptorRoute(roads: Roads, name: string | number): Route {
  const tls = clientTls(roads);
  const { fd, isSocket } = findDescriptor(roads, name);
  if (isSocket) return { ...socketRoute(roads, { type: 'fd', fd }), canReopen: false };
  return once(async () => openPipe(roads, fd, 'to', tls));
}

/** How a connection is secured, if it is to be. */
interface Tls {
  readonly end: (() => TlsEnd) | undefined;
  /** Errors: unsupported where it is to be: there is no connection. */
  refuse(): void;
}

function tlsOf(end: Tls['end']): Tls {
  return {
    end,
    refuse() {
      if (end) throw new BlockError('unsupported', NO_CONNECTION);
    },
  };
}

const NO_CONNECTION =
  "'tls-creds' are set, and TLS needs a connection: a pipe, a command and a file have none";

/** Errors: those of the credentials. */
function clientTls({ settings, objects }: Roads, known?: string): Tls {
  const { 'tls-creds': credentials, 'tls-hostname': name } = settings.parameters.values;
  if (credentials === '') return tlsOf(undefined);
  const end = (): TlsEnd => withHostname(tlsEnd(objects, credentials), name === '' ? known : name);
  end();
  return tlsOf(end);
}

/** How sources that come are to be secured. */
function doorTls({ settings }: Roads): DoorTls | undefined {
  const { 'tls-creds': credentials, 'tls-authz': authz } = settings.parameters.values;
  return credentials === '' ? undefined : { credentials, ...(authz !== '' && { authz }) };
}

/** Errors: those of the credentials. */
function serverTls({ objects }: Roads, asked: DoorTls | undefined): Tls {
  return tlsOf(asked && tlsServerEnd(objects, asked.credentials, asked.authz));
}

/** Gets each connection; undefined: of a door that is for one alone, that there is none. */
type Take = (stream: ByteStream | undefined) => void;

/** Sources come in. Errors: those of listening, of opening, of credentials. */
export async function openDoor(roads: Roads, target: MoveTarget, take: Take): Promise<Door> {
  const { host } = roads.settings;
  const asked = doorTls(roads);
  const tls = target.kind === 'unresolved' ? tlsOf(undefined) : serverTls(roads, asked);
  switch (target.kind) {
    case 'socket':
      return listen(roads, target.address, take, asked);
    case 'unresolved':
      throw target.why;
    case 'descriptor': {
      const { fd, isSocket } = findDescriptor(roads, target.name);
      if (isSocket) void comesIn(roads, tls, await host.net.connect({ type: 'fd', fd })).then(take);
      else take(openPipe(roads, fd, 'from', tls));
      return readOnce();
    }
    case 'command':
      tls.refuse();
      take(new OneWayStream(pipesOf(host).run(target.argv, 'from')));
      return readOnce();
    case 'state-file':
      tls.refuse();
      take(await FileStream.open(host, target.path, target.offset));
      return readOnce();
  }
}

/** Errors: those of listening, of credentials. */
async function listen(
  roads: Roads,
  at: SocketAddress,
  take: (stream: ByteStream) => void,
  asked: DoorTls | undefined,
): Promise<Door> {
  const tls = serverTls(roads, asked);
  const listener = await roads.settings.host.net.listen(
    at,
    (socket) => void comesIn(roads, tls, socket).then((stream) => stream && take(stream)),
  );
  const { address } = listener;
  return { address, isOnce: false, ...given({ tls: asked }), close: () => listener.close() };
}

/** The door that another process had. Errors: those of listening, of credentials. */
export async function openDoorAgain(
  roads: Roads,
  { isOnce, address, tls }: PassedDoor,
  take: (stream: ByteStream) => void,
): Promise<Door> {
  if (isOnce || !address) return { ...readOnce(), isOnce };
  return listen(roads, address, take, tls);
}

/** Undefined, and told, where nothing comes of a connection. */
async function comesIn(
  { settings: { host, warn } }: Roads,
  { end }: Tls,
  socket: HostSocket,
): Promise<ByteStream | undefined> {
  try {
    const endMs = host.clock.nowMs() + CONNECT_MS;
    return new SocketStream(end ? await secured(host, socket, end(), endMs) : socket);
  } catch (error) {
    warn(error instanceof Error ? error.message : String(error));
    return undefined;
  }
}

/** What can be read once only. */
function readOnce(): Door {
  return { address: undefined, isOnce: true, close: async () => undefined };
}

/** It is taken at once, so that what is wrong with it is told at once. */
function findDescriptor(
  { settings, takeDescriptor }: Roads,
  name: string | number,
): { fd: number; isSocket: boolean } {
  const fd = typeof name === 'number' ? name : takeDescriptor(name);
  const kind = fd === undefined ? undefined : pipesOf(settings.host).kindOf(fd);
  if (fd === undefined || kind === undefined)
    throw new BlockError('not-found', `File descriptor named '${name}' has not been found`);
  return { fd, isSocket: kind === 'socket' };
}

function openPipe({ settings }: Roads, fd: number, direction: 'to' | 'from', tls: Tls): ByteStream {
  const stream = new OneWayStream(pipesOf(settings.host).open(fd, direction));
  try {
    tls.refuse();
  } catch (error) {
    stream.destroy();
    throw error;
  }
  return stream;
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
