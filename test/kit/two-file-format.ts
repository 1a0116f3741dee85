import { assert } from '../../src/base/assert.js';
import type {
  ChildIo,
  DriverContext,
  DriverDescription,
  DriverInstance,
  MapDriver,
  Reservation,
} from '../../src/block/driver.js';
import { Flag, hasFlag, type Mapping } from '../../src/block/request.js';
import { driverOptions } from '../../src/schema/blockdev-options.js';

const CLUSTER_BYTES = 2048;
const UNIT_BYTES = 512;
const UNITS = CLUSTER_BYTES / UNIT_BYTES;
/** Of what is not plain, in each byte. */
const DISGUISE = 0xa5;

type Unit = 'none' | 'zero' | 'data';

interface Cluster {
  host: number | undefined;
  units: Unit[];
}

/** What is in the `file` child, as JSON. */
interface Header {
  sizeBytes: number;
  clusters: Record<number, Cluster>;
  ends: [number, number];
}

/** Of every four clusters the last is disguised. */
export function isPlainAt(offset: number): boolean {
  return Math.floor(offset / CLUSTER_BYTES) % 4 !== 3;
}

/** Clusters lie by turns in two children. */
export function childRoleAt(offset: number): 'even' | 'odd' {
  return Math.floor(offset / CLUSTER_BYTES) % 2 === 0 ? 'even' : 'odd';
}

/** Contents of `file` of an empty image. */
export function newTwoFileHeader(sizeBytes: number): string {
  return encode({ sizeBytes, clusters: {}, ends: [0, 0] });
}

function encode(header: Header): string {
  return `${JSON.stringify(header)}\n`;
}

/**
 * A format with all that a mapping may say: two children with data, clusters whose parts are allocated and zeroed each for
 * itself, and some that only the driver can read and write. Freed clusters are reused with what they held.
 */
class TwoFileMap implements MapDriver {
  readonly clusterBytes = CLUSTER_BYTES;
  readonly unitBytes = UNIT_BYTES;
  readonly events: ChildIo;
  readonly header: Header;
  isDirty = false;
  readonly #context: DriverContext;
  readonly #free: [number[], number[]] = [[], []];

  constructor(context: DriverContext, header: Header) {
    this.#context = context;
    this.header = header;
    this.events = context.child('file');
  }

  #cluster(index: number): Cluster {
    return this.header.clusters[index] ?? { host: undefined, units: Array<Unit>(UNITS).fill('none') };
  }

  /** The cluster as it is kept, to change. */
  #change(index: number): Cluster {
    this.isDirty = true;
    return (this.header.clusters[index] ??= this.#cluster(index));
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    const within = offset % CLUSTER_BYTES;
    const { host, units } = this.#cluster(Math.floor(offset / CLUSTER_BYTES));
    const first = Math.floor(within / UNIT_BYTES);
    let end = first + 1;
    while (end < UNITS && units[end] === units[first]) end++;
    const isData = units[first] === 'data';
    out.kind = isData ? 'data' : units[first] === 'zero' ? 'zero' : 'backing';
    out.lengthBytes = Math.min(lengthBytes, end * UNIT_BYTES - within);
    out.child = isData ? this.#context.child(childRoleAt(offset)) : undefined;
    out.hostOffset = isData ? Number(host) + within : -1;
    out.plain = isData && isPlainAt(offset);
    out.writable = isData;
    return true;
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    this.tryMap(offset, lengthBytes, out);
  }

  async readSpecial(mapping: Mapping, offset: number, buffer: Uint8Array): Promise<void> {
    assert(mapping.kind === 'data' && !isPlainAt(offset), 'only what is disguised is read so');
    await mapping.child?.read(mapping.hostOffset, buffer);
    await assertUnchanged(buffer);
    for (const [i, byte] of buffer.entries()) buffer[i] = byte ^ DISGUISE;
  }

  async writeSpecial(child: ChildIo, hostOffset: number, offset: number, buffer: Uint8Array): Promise<void> {
    assert(!isPlainAt(offset), 'only what is disguised is written so');
    await assertUnchanged(buffer);
    const disguised = buffer.map((byte) => byte ^ DISGUISE);
    await child.write(hostOffset, disguised, 0);
  }

  async reserve(offset: number, lengthBytes: number): Promise<Reservation> {
    return this.tryReserve(offset, lengthBytes);
  }

  tryReserve(offset: number, lengthBytes: number): Reservation {
    const index = Math.floor(offset / CLUSTER_BYTES);
    const side = index % 2 === 0 ? 0 : 1;
    const { host: kept, units } = this.#cluster(index);
    const first = Math.floor((offset % CLUSTER_BYTES) / UNIT_BYTES);
    const last = Math.min(UNITS, Math.ceil(((offset % CLUSTER_BYTES) + lengthBytes) / UNIT_BYTES));
    let end = first;
    while (end < last && units[end] !== 'data') end++;
    assert(end > first, 'writable data needs no reservation');
    const reused = kept ?? this.#free[side].pop();
    const host = reused ?? this.header.ends[side];
    if (reused === undefined) this.header.ends[side] += CLUSTER_BYTES;
    const plain = isPlainAt(offset);
    const hasBacking = this.#context.hasChild('backing');
    const wasZero = units.slice(first, end).every((unit) => unit === 'zero' || !hasBacking);
    return {
      offset: index * CLUSTER_BYTES + first * UNIT_BYTES,
      lengthBytes: (end - first) * UNIT_BYTES,
      child: this.#context.child(childRoleAt(offset)),
      hostOffset: host + first * UNIT_BYTES,
      plain,
      readsZero: plain && reused === undefined,
      before: wasZero ? 'zero' : 'mixed',
      link: () => {
        const cluster = this.#change(index);
        assert(cluster.host === kept, 'the mapping changed under a reservation');
        cluster.host = host;
        cluster.units.fill('data', first, end);
      },
      abort: () => {
        if (kept === undefined) this.#free[side].push(host);
      },
    };
  }

  async zeroClusters(offset: number, lengthBytes: number, flags: number): Promise<void> {
    assert(offset % UNIT_BYTES === 0, 'zeroes begin with a unit');
    for (let at = offset; at < offset + lengthBytes; at += UNIT_BYTES) {
      const index = Math.floor(at / CLUSTER_BYTES);
      const cluster = this.#change(index);
      cluster.units[(at % CLUSTER_BYTES) / UNIT_BYTES] = 'zero';
      if (!hasFlag(flags, Flag.mayUnmap) || cluster.host === undefined || cluster.units.includes('data'))
        continue;
      this.#free[index % 2 === 0 ? 0 : 1].push(cluster.host);
      cluster.host = undefined;
    }
  }

  discardClusters(offset: number, lengthBytes: number): Promise<void> {
    return this.zeroClusters(offset, lengthBytes, Flag.mayUnmap);
  }
}

/** As decoders and encoders do, looks again after a while. */
async function assertUnchanged(buffer: Uint8Array): Promise<void> {
  const before = Buffer.from(buffer);
  for (let turn = 0; turn < 3; turn++) await Promise.resolve();
  assert(before.equals(buffer), 'memory that is looked at twice does not change');
}

class TwoFileNode implements DriverInstance {
  readonly requestAlignmentBytes = 1;
  readonly map: TwoFileMap;
  readonly #context: DriverContext;

  constructor(context: DriverContext, header: Header) {
    this.#context = context;
    this.map = new TwoFileMap(context, header);
  }

  get lengthBytes(): number {
    return this.map.header.sizeBytes;
  }

  async flush(): Promise<void> {
    for (const role of ['even', 'odd']) await this.#context.child(role).flush();
    const file = this.#context.child('file');
    if (this.map.isDirty) {
      this.map.isDirty = false;
      await file.write(0, Buffer.from(encode(this.map.header)), 0);
    }
    await file.flush();
  }

  /** What a longer backing file has beyond the old end stays hidden. */
  async truncate(lengthBytes: number): Promise<void> {
    const old = this.lengthBytes;
    assert(old % UNIT_BYTES === 0 && lengthBytes > old, 'it grows by whole units');
    await this.map.zeroClusters(old, lengthBytes - old, Flag.mayUnmap);
    this.map.header.sizeBytes = lengthBytes;
  }

  info(): { clusterSizeBytes: number } {
    return { clusterSizeBytes: CLUSTER_BYTES };
  }

  async close(): Promise<void> {
    if (this.map.isDirty) await this.flush();
  }
}

const CHILDREN = ['file', 'even', 'odd'].map((role) => ({ role, required: true }));
const OPTIONS = driverOptions({}, CHILDREN, true);

export const twoFileDriver: DriverDescription<typeof OPTIONS> = {
  name: 'two-file',
  kind: 'format',
  options: OPTIONS,

  async open(context) {
    const file = context.child('file');
    const bytes = Buffer.alloc(file.lengthBytes);
    await file.read(0, bytes);
    const text = bytes.toString();
    return new TwoFileNode(context, JSON.parse(text.slice(0, text.indexOf('\n'))) as Header);
  },
};
