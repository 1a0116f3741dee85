import { BlockError } from '../base/error.js';
import { type CharacterDevice, NullDevice, RingBuffer } from '../attach/character-device.js';
import { FileDevice } from '../attach/file-device.js';
import { MuxDevice } from '../attach/mux-device.js';
import {
  SocketClientDevice,
  PipeDevice,
  SocketServerDevice,
  StandardDevice,
  TerminalDevice,
} from '../attach/socket-device.js';
import { tlsEnd, tlsServerEnd, withHostname } from '../block/objects/tls-end.js';
import type { TlsEnd } from '../host/host.js';
import { CHARDEV_KINDS, type ChardevBackend } from '../schema/chardev.js';
import { type FlatAddress, socketAddress } from './exports.js';
import type { Parts } from './parts.js';

type Chardevs = Parts<'characterDevices' | 'host' | 'graph' | 'openStandard' | 'hub' | 'warn' | 'quitting'>;

export function registerChardevs(engine: Chardevs & Parts<'command'>): void {
  const { characterDevices } = engine;
  engine.command('chardev-add', async ({ id, backend }) =>
    toReturn(await characterDevices.add(id, () => openNamed(engine, id, backend))),
  );
  engine.command('chardev-change', async ({ id, backend }) => {
    const old = characterDevices.find(id);
    if (!old) throw new BlockError('not-found', `Chardev '${id}' does not exist`);
    if (old instanceof MuxDevice) throw new BlockError('unsupported', 'Mux device hotswap not supported yet');
    return toReturn(await characterDevices.replace(old, () => openNamed(engine, id, backend)));
  });
  engine.command('chardev-remove', ({ id }) => characterDevices.remove(id));
  engine.command('chardev-send-break', ({ id }) => {
    // None that is here has a line to break.
    if (!characterDevices.find(id)) throw new BlockError('not-found', `Chardev '${id}' not found`);
  });
  engine.command('query-chardev', () =>
    characterDevices
      .list()
      .map(({ id, filename, isOpen }) => ({ label: id, filename, 'frontend-open': isOpen })),
  );
  engine.command('query-chardev-backends', () => CHARDEV_KINDS.map((name) => ({ name })));
  engine.command('ringbuf-write', ({ device, data, format }) =>
    findRingBuffer(engine, device).write(format === 'base64' ? decodeBase64(data) : Buffer.from(data)),
  );
  engine.command('ringbuf-read', ({ device, size, format }) => {
    const buffer = findRingBuffer(engine, device);
    if (size <= 0) throw new BlockError('invalid', 'size must be greater than zero');
    return format === 'base64' ? buffer.read(size).toString('base64') : text(buffer.read(size));
  });
}

function toReturn(device: CharacterDevice): { pty?: string } {
  return device instanceof TerminalDevice ? { pty: device.path } : {};
}

/** As a string of C, to its first zero byte. */
function text(bytes: Buffer): string {
  const zero = bytes.indexOf(0);
  return bytes.toString('utf8', 0, zero < 0 ? bytes.length : zero);
}

function decodeBase64(data: string): Buffer {
  if (!/^[A-Za-z0-9+/=\s]*$/.test(data))
    throw new BlockError('invalid', 'Base64 data contains invalid characters');
  return Buffer.from(data, 'base64');
}

function findRingBuffer({ characterDevices }: Chardevs, id: string): RingBuffer {
  const device = characterDevices.find(id);
  if (!device) throw new BlockError('not-found', `Device '${id}' not found`);
  if (device instanceof RingBuffer) return device;
  throw new BlockError('invalid', `${id} is not a ringbuf device`);
}

async function openNamed(engine: Chardevs, id: string, backend: ChardevBackend): Promise<CharacterDevice> {
  try {
    return await openCharacterDevice(engine, id, backend);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.kind, `Failed to add chardev '${id}': ${error.message}`, { cause: error });
  }
}

/** `inform`: told for whom it waits. Errors: those of opening it. */
export async function openCharacterDevice(
  engine: Chardevs,
  id: string,
  backend: ChardevBackend,
  maxClients?: number,
  inform = engine.warn,
): Promise<CharacterDevice> {
  const { logfile, logappend = false } = backend.data;
  const log = logfile === undefined ? undefined : await FileDevice.log(id, engine.host, logfile, logappend);
  let device: CharacterDevice;
  try {
    device = await openBackend(engine, id, backend, { maxClients, inform });
  } catch (error) {
    await log?.close();
    throw error;
  }
  device.log = log;
  device.origin = { backend, maxClients };
  return device;
}

function openBackend(
  engine: Chardevs,
  id: string,
  backend: ChardevBackend,
  more: SocketUse,
): CharacterDevice | Promise<CharacterDevice> {
  if (backend.type === 'socket') return openSocket(engine, id, backend.data, more);
  const open = OPENERS[backend.type] as Opener<typeof backend.type>;
  return open(engine, id, backend.data);
}

type Opener<K extends ChardevBackend['type']> = (
  engine: Chardevs,
  id: string,
  data: Extract<ChardevBackend, { type: K }>['data'],
) => CharacterDevice | Promise<CharacterDevice>;

const OPENERS: { readonly [K in Exclude<ChardevBackend['type'], 'socket'>]: Opener<K> } = {
  file: ({ host }, id, { out, append = false }) => FileDevice.open(id, host, out, append),
  memory: (_engine, id, { size }) => new RingBuffer(id, 'memory', size),
  mux: ({ characterDevices, quitting }, id, { chardev }) => {
    const base = characterDevices.find(chardev);
    if (!base) throw new BlockError('not-found', `mux: base chardev ${chardev} not found`);
    return new MuxDevice(id, base, () => quitting.resolve());
  },
  null: (_engine, id) => new NullDevice(id),
  pipe: ({ host }, id, { device }) => new PipeDevice(id, host, device),
  pty: ({ host }, id) => new TerminalDevice(id, host),
  ringbuf: (_engine, id, { size }) => new RingBuffer(id, 'ringbuf', size),
  stdio: ({ openStandard, characterDevices }, id) => {
    if (characterDevices.list().some((device) => device instanceof StandardDevice))
      throw new BlockError('busy', 'cannot use stdio by multiple character devices');
    if (openStandard) return new StandardDevice(id, openStandard);
    throw new BlockError('unsupported', "stdio is not the engine's here");
  },
};

interface SocketUse {
  maxClients: number | undefined;
  inform: (text: string) => void;
}

type SocketBackend = Extract<ChardevBackend, { type: 'socket' }>['data'];

async function openSocket(
  engine: Chardevs,
  id: string,
  data: SocketBackend,
  { maxClients, inform }: SocketUse,
): Promise<CharacterDevice> {
  const { host, graph } = engine;
  const { server: isServer = true, wait, reconnect = 0 } = data;
  const reconnectMs = data['reconnect-ms'] ?? reconnect * 1000;
  if (reconnect !== 0 && data['reconnect-ms'] !== undefined)
    throw new BlockError('invalid', "'reconnect' and 'reconnect-ms' are mutually exclusive");
  if (isServer && reconnectMs !== 0)
    throw new BlockError('invalid', "'reconnect' option is incompatible with socket in server listen mode");
  if (!isServer && wait !== undefined)
    throw new BlockError('invalid', "'wait' option is incompatible with socket in client connect mode");
  const { addr } = data;
  const address = socketAddress({ type: addr.type, ...addr.data } as FlatAddress, graph.descriptorOf);
  const hostname = address.type === 'inet' ? address.host : undefined;
  const tls = tlsOf(engine, data, isServer, hostname);
  if (isServer) {
    const limit = maxClients === undefined ? {} : { maxClients };
    const device = await SocketServerDevice.listen(id, host, { address, tls, ...limit });
    if (wait === true) {
      inform(`info: QEMU waiting for connection on: ${device.filename}`);
      await device.connected;
    }
    return device;
  }
  const onFailure = (error: BlockError): void =>
    engine.warn(`Unable to connect character device ${id}: ${error.message}`);
  const again = reconnectMs === 0 ? undefined : reconnectMs;
  return SocketClientDevice.connect(id, host, { address, tls, reconnectMs: again, onFailure });
}

function tlsOf(
  { graph: { objects } }: Chardevs,
  data: SocketBackend,
  isServer: boolean,
  hostname: string | undefined,
): (() => TlsEnd) | undefined {
  const { 'tls-creds': credentials, 'tls-authz': authz } = data;
  if (credentials !== undefined && isServer) return tlsServerEnd(objects, credentials, authz);
  if (credentials !== undefined) {
    const end = withHostname(tlsEnd(objects, credentials), hostname);
    return () => end;
  }
  if (authz !== undefined) throw new BlockError('invalid', "'tls_authz' option requires 'tls_creds' option");
  return undefined;
}
