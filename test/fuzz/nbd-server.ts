import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { join } from 'node:path';
import { KiB, MiB } from '../../src/base/limits.js';
import type { SocketAddress, TlsEnd } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';
import type { SeededRandom } from '../../src/host/simulated-random.js';
import { NbdClient } from '../../src/wire/nbd/client.js';
import {
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  encodeRequest,
  type HeaderStyle,
  requestBytes,
  uint32,
} from '../../src/wire/nbd/codec.js';
import { BASE_ALLOCATION, Command, Option } from '../../src/wire/nbd/constants.js';
import { NbdServer } from '../../src/wire/nbd/server.js';
import { MemoryTarget } from '../kit/nbd-target.js';
import type { UnderFuzz } from './main.js';
import { damaged, oddNumber, pick } from './random-bytes.js';

const DISK_BYTES = MiB;
const OPTIONS = Object.values(Option);
const COMMANDS = Object.values(Command);
const NAMES = ['disk', '', 'late', 'x'.repeat(4096), '\u00e9'.repeat(3000)];
const KEYS = new Map([['me', Buffer.alloc(16, 1)]]);
const SERVER_END: TlsEnd = { isServer: true, verifiesPeer: true, sharedKeys: KEYS };
const CLIENT_END: TlsEnd = { isServer: false, verifiesPeer: true, sharedKeys: KEYS, userName: 'me' };
/** How long a hostile client stays that has said all it has to say. */
const STAYS_MS = 300;

const host = createRealHost();

/** Servers with and without TLS, of a disk that answers at once and one that does not. */
export class ServerUnderFuzz implements UnderFuzz {
  readonly #servers: readonly NbdServer[];
  readonly #paths: readonly string[];
  readonly #targets: readonly MemoryTarget[];

  private constructor(servers: readonly NbdServer[], paths: readonly string[], targets: MemoryTarget[]) {
    this.#servers = servers;
    this.#paths = paths;
    this.#targets = targets;
  }

  static async start(folder: string): Promise<ServerUnderFuzz> {
    // Loaded with the first handshake else, and what loads TypeScript may open sockets of its own for that.
    await import('../../src/host/tls-socket.js');
    const targets = [new MemoryTarget(DISK_BYTES), new MemoryTarget(DISK_BYTES)] as const;
    targets[1].isLate = true;
    const paths = ['plain', 'tls'].map((name) => join(folder, name));
    const servers: NbdServer[] = [];
    for (const [i, path] of paths.entries()) {
      const server = await NbdServer.listen(
        host,
        { type: 'unix', path },
        { handshakeTimeoutMs: 5000, ...(i === 1 && { tls: () => SERVER_END }) },
      );
      server.addExport({ name: 'disk', target: targets[0], readOnly: false, multiConn: true });
      server.addExport({ name: 'late', target: targets[1], readOnly: false, multiConn: true });
      servers.push(server);
    }
    return new ServerUnderFuzz(servers, paths, [...targets]);
  }

  async meet(random: SeededRandom): Promise<void> {
    const isTls = random.chance(0.15);
    const path = this.#paths[isTls ? 1 : 0] ?? '';
    const isReading = random.chance(0.9);
    const socket = connect(path);
    const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    // A server that hangs up is right to.
    socket.on('error', () => undefined);
    if (isReading) socket.resume();
    else socket.pause();
    const said = isTls && random.chance(0.5) ? startTlsAndNoise(random) : conversation(random);
    for (let at = 0; at < said.length;) {
      const bytes = random.chance(0.3) ? 1 + random.below(64) : 1 + random.below(64 * KiB);
      socket.write(said.subarray(at, at + bytes));
      at += bytes;
      if (random.chance(0.1)) await new Promise((resolve) => setTimeout(resolve, random.below(5)));
    }
    if (random.chance(0.3)) socket.destroy();
    else if (random.chance(0.5)) socket.end();
    const timer = setTimeout(() => socket.destroy(), STAYS_MS);
    await closed;
    clearTimeout(timer);
  }

  async check(): Promise<void> {
    for (const [i, server] of this.#servers.entries()) {
      for (let tries = 0; server.connectionCount > 0; tries++) {
        assert.ok(tries < 3000, `${server.connectionCount} clients are left`);
        await host.clock.sleep(10);
      }
      const address: SocketAddress = { type: 'unix', path: this.#paths[i] ?? '' };
      const options = { host, address, exportName: 'disk', ...(i === 1 && { tls: CLIENT_END }) };
      const client = await NbdClient.connect(options);
      const written = Buffer.alloc(4 * KiB, i + 1);
      await client.write(0, written, 0);
      const got = Buffer.alloc(4 * KiB);
      await client.read(0, got);
      assert.deepEqual(got, written);
      await client.close();
    }
    for (const target of this.#targets) target.log.length = 0;
  }

  async close(): Promise<void> {
    for (const server of this.#servers) await server.close();
  }
}

function startTlsAndNoise(random: SeededRandom): Buffer {
  const hello = Buffer.from([22, 3, pick(random, [0, 1, 3, 4]), random.below(64), random.below(256), 1, 0]);
  return Buffer.concat([
    uint32(3),
    encodeOption(Option.startTls, Buffer.alloc(0)),
    damaged(random, Buffer.concat([hello, random.bytes(random.below(2000))]), 0.5),
  ]);
}

/** All that one client says: mostly what a server may be asked, with anything wrong in it. */
function conversation(random: SeededRandom): Buffer {
  const parts = [damaged(random, uint32(random.chance(0.95) ? 3 : random.below(2 ** 32)), 0.02)];
  for (let i = random.below(6); i > 0; i--) parts.push(damaged(random, option(random), 0.05));
  const style = pick<HeaderStyle>(random, ['simple', 'structured', 'extended']);
  const name = random.chance(0.7) ? 'disk' : 'late';
  const empty = Buffer.alloc(0);
  if (style === 'structured') parts.push(encodeOption(Option.structuredReply, empty));
  if (style === 'extended') parts.push(encodeOption(Option.extendedHeaders, empty));
  if (style !== 'simple')
    parts.push(
      encodeOption(Option.setMetaContext, encodeMetaContextRequest({ name, queries: [BASE_ALLOCATION] })),
    );
  parts.push(
    random.chance(0.8)
      ? encodeOption(Option.go, encodeInfoRequest({ name, infos: [] }))
      : encodeOption(Option.exportName, Buffer.from(name)),
  );
  for (let i = random.below(40); i > 0; i--) parts.push(damaged(random, request(random, style), 0.02));
  return Buffer.concat(parts);
}

function option(random: SeededRandom): Buffer {
  const number = random.chance(0.9) ? pick(random, OPTIONS) : random.below(2 ** 32);
  const name = pick(random, NAMES);
  const queries = [BASE_ALLOCATION, 'base:', 'qemu:', '', 'x'].slice(random.below(5));
  const payload = pick(random, [
    Buffer.alloc(0),
    encodeInfoRequest({ name, infos: [random.below(6)] }),
    encodeMetaContextRequest({ name, queries }),
    random.bytes(random.below(300)),
    Buffer.alloc(random.below(100 * KiB)),
  ]);
  const whole = encodeOption(number, damaged(random, payload, 0.2));
  // Another length than it has.
  if (random.chance(0.05)) whole.writeUInt32BE(random.below(2 ** 32), 12);
  return whole;
}

function request(random: SeededRandom, style: HeaderStyle): Buffer {
  const command = random.chance(0.95) ? pick(random, COMMANDS) : random.below(65_536);
  // A goodbye ends all.
  if (command === Command.disconnect && random.chance(0.9)) return Buffer.alloc(0);
  const isWrite = command === Command.write;
  const lengthBytes = isWrite ? random.below(20_000) : oddNumber(random, DISK_BYTES) % 2 ** 32;
  const header = Buffer.alloc(requestBytes(style));
  const flags = random.chance(0.7) ? 0 : random.chance(0.9) ? 2 ** random.below(8) : random.below(65_536);
  encodeRequest(
    header,
    0,
    {
      command,
      flags,
      offset: oddNumber(random, DISK_BYTES),
      lengthBytes,
      cookieHigh: random.below(2 ** 32),
      cookieLow: random.below(2 ** 32),
    },
    style,
  );
  return isWrite ? Buffer.concat([header, Buffer.alloc(lengthBytes, 7)]) : header;
}
