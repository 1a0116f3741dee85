import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { assert } from '../../base/assert.js';
import type { GuestDevice } from '../../attach/device.js';
import type { DeviceModel } from '../../attach/device-models.js';
import { BLOCK_PROPERTIES, DEVICE_PROPERTIES } from '../../attach/device-properties.js';
import type { Endpoint } from '../../attach/endpoint.js';
import type { Plugged } from '../../attach/machine.js';
import type { JsonObject } from '../../schema/types.js';

/** A disk of ours as the other program's device, and what that stands on there. */
export type FrontEnd =
  | { kind: 'vhost-user'; chardev: string; path: string; device: JsonObject }
  | { kind: 'node'; node: JsonObject; device: JsonObject };

/** What a disk is on both sides, and is said apart from its properties. */
const IDENTITY = ['driver', 'id', 'bus'];

/** What virtio-blk takes and vhost-user-blk does not: it is told over the socket, or is for us alone. */
const NOT_OF_VHOST = new Set([
  ...IDENTITY,
  ...Object.keys(BLOCK_PROPERTIES),
  ...'cyls heads secs lcyls lheads lsecs rerror werror iothread serial scsi request-merging'.split(' '),
  ...'seg-max-adjust report-discard-granularity x-enable-wce-if-config-wce'.split(' '),
  ...'max-discard-sectors max-write-zeroes-sectors'.split(' '),
]);

/** What is ours to do of a disk that comes over NBD. */
const OURS_OF_NBD = new Set([...IDENTITY, 'drive', 'share-rw', 'x-endpoint', 'rerror', 'werror']);

/** A type alias: it is JSON. `device`: its path. */
export type PassedFrontEnds = {
  sharesMemory: boolean;
  count: number;
  endpoints: Array<{
    device: string;
    type: 'unix';
    path: string;
    protocol?: 'nbd' | 'vhost-user';
    handlesErrors?: boolean;
  }>;
};

/** Sockets on which the guest's program finds our disks: in a folder that is gone once it has connected. */
export class FrontEnds {
  readonly #sharesMemory: boolean;
  #folder: string | undefined;
  #count = 0;
  /** Those of devices that are to be made as another process had them. */
  readonly #passed: Endpoint[] = [];

  /** `sharesMemory`: the guest's memory can be mapped here. */
  constructor(sharesMemory: boolean) {
    this.#sharesMemory = sharesMemory;
  }

  /** For from() in another process. */
  passed(devices: Iterable<GuestDevice>): PassedFrontEnds {
    const endpoints = [...devices].flatMap(({ path, endpoint }) =>
      endpoint?.type === 'unix' ? [{ device: path, ...endpoint }] : [],
    );
    return { sharesMemory: this.#sharesMemory, count: this.#count, endpoints };
  }

  /** Of another process; its devices are made in the order of `paths`. */
  static from({ sharesMemory, count, endpoints }: PassedFrontEnds, paths: readonly string[]): FrontEnds {
    const frontEnds = new FrontEnds(sharesMemory);
    frontEnds.#count = count;
    for (const path of paths) {
      const { device, ...endpoint } = endpoints.find((one) => one.device === path) ?? {};
      if (device !== undefined) frontEnds.#passed.push(endpoint as Endpoint);
    }
    return frontEnds;
  }

  endpointFor(model: DeviceModel): Endpoint {
    const passed = this.#passed.shift();
    if (passed) return passed;
    this.#folder ??= mkdtempSync(join(tmpdir(), 'livedisk-machine-'));
    const isVhost = this.#sharesMemory && model.name.startsWith('virtio-blk');
    const path = join(this.#folder, `${this.#count++}`);
    return isVhost
      ? { type: 'unix', path, protocol: 'vhost-user' }
      : { type: 'unix', path, protocol: 'nbd', handlesErrors: true };
  }

  /** The other program's node of a disk that comes over NBD. */
  nodeOf({ endpoint }: GuestDevice): string | undefined {
    return endpoint?.type === 'unix' && endpoint.handlesErrors === true ? nodeName(endpoint.path) : undefined;
  }

  /** All that was made has been connected to. */
  removeSockets(): void {
    if (this.#folder !== undefined) rmSync(this.#folder, { recursive: true, force: true });
    this.#folder = undefined;
  }

  /** `given`: its properties as QMP has them, with their types, where it was asked for by that. */
  of(
    { model, id, bus, given: texts = {} }: Plugged,
    disk: GuestDevice,
    { isPlaced, given = texts }: { isPlaced: boolean; given?: JsonObject },
  ): FrontEnd {
    const { endpoint } = disk;
    assert(endpoint?.type === 'unix', 'a disk that the guest comes to');
    const identity: JsonObject = {
      ...(id !== undefined && { id }),
      // One that was not asked for is wherever there is room.
      ...(bus && isPlaced && { bus: bus.name }),
    };
    const number = basename(endpoint.path);
    if (endpoint.protocol === 'vhost-user') {
      const chardev = `livedisk.${number}`;
      const rest = Object.entries(given).filter(([name]) => !NOT_OF_VHOST.has(name));
      const driver =
        model.name === 'virtio-blk-device'
          ? 'vhost-user-blk'
          : `vhost-user-${model.name.slice('virtio-'.length)}`;
      const device = { driver, ...identity, 'num-queues': 1, ...Object.fromEntries(rest), chardev };
      return { kind: 'vhost-user', chardev, path: endpoint.path, device };
    }
    const name = nodeName(endpoint.path);
    const rest = Object.entries(given).filter(([key]) => !OURS_OF_NBD.has(key));
    const { readErrors, writeErrors } = disk.errorPolicies;
    // The guest's program goes by them, stops its processors, and tries again.
    const policies = DEVICE_PROPERTIES[model.name]?.['werror']
      ? { rerror: readErrors, werror: writeErrors }
      : {};
    return {
      kind: 'node',
      node: {
        ...{ driver: 'nbd', 'node-name': name, export: disk.id ?? disk.backend.name },
        ...{
          server: { type: 'unix', path: endpoint.path },
          'read-only': !disk.backend.isWritable,
          discard: 'unmap',
        },
      },
      device: {
        ...{ driver: model.name, ...identity, ...policies, ...Object.fromEntries(rest) },
        ...(disk.backend.root && { drive: name }),
      },
    };
  }
}

function nodeName(socketPath: string): string {
  return `livedisk-${basename(socketPath)}`;
}

/** The words for a command line. */
export function wordsOf(frontEnd: FrontEnd): string[] {
  if (frontEnd.kind === 'node')
    return ['-blockdev', JSON.stringify(frontEnd.node), '-device', keyval(frontEnd.device)];
  const { chardev, path, device } = frontEnd;
  return ['-chardev', `socket,id=${chardev},path=${escape(path)}`, '-device', keyval(device)];
}

function keyval(properties: JsonObject): string {
  const { driver, ...rest } = properties;
  const pairs = Object.entries(rest).map(([key, value]) => `${key}=${escape(textOf(value))}`);
  return [driver as string, ...pairs].join(',');
}

function textOf(value: JsonObject[string]): string {
  if (typeof value === 'boolean') return value ? 'on' : 'off';
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** A value among others. */
export function escape(text: string): string {
  return text.replaceAll(',', ',,');
}
