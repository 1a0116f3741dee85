import { NO_TRACE_OUTPUT, Trace } from '../../src/base/trace.js';
import { Notifier } from '../../src/base/async.js';
import { BlockError } from '../../src/base/error.js';
import type { BlockBackend } from '../../src/block/backend.js';
import type { BackendProperties } from '../../src/block/backend-user.js';
import type { DriverDescription, DriverInstance, PermissionSet } from '../../src/block/driver.js';
import { Graph } from '../../src/block/graph.js';
import { Node } from '../../src/block/node.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import type { Host } from '../../src/host/host.js';
import { driverOptions } from '../../src/schema/blockdev-options.js';
import { type IoRequest } from '../../src/block/request.js';

export const WRITER = Permission.consistentRead | Permission.write;

/** A device in memory whose reads wait for a gate, and which records or refuses permissions. */
export class FakeDevice implements DriverInstance {
  readonly lengthBytes = 4096;
  readonly requestAlignmentBytes = 1;
  readonly seen: PermissionSet[] = [];
  refuse = false;
  readonly gate = new Notifier();
  aborted = 0;
  /** What drained sections told it. */
  readonly drains: string[] = [];
  /** Set: it comes to rest when this resolves. */
  resting: Promise<void> | undefined;

  readonly io = {
    read: async (request: IoRequest, from: number, lengthBytes: number): Promise<void> => {
      await this.gate.wait();
      request.gather(from, lengthBytes).fill(7);
    },
    write: async (): Promise<void> => undefined,
    writeZeroes: async (): Promise<void> => undefined,
    discard: async (): Promise<void> => undefined,
    status: async (_offset: number, lengthBytes: number) => ({
      lengthBytes,
      allocated: true,
      zero: false,
      data: true,
    }),
  };

  async preparePermissions(set: PermissionSet): Promise<{ commit(): void; abort(): void }> {
    if (this.refuse) throw new BlockError('busy', 'Failed to get "write" lock');
    return { commit: () => void this.seen.push(set), abort: () => void this.aborted++ };
  }

  drainBegin(): Promise<void> | undefined {
    this.drains.push('begin');
    return this.resting;
  }

  drainEnd(): void {
    this.drains.push('end');
  }

  async flush(): Promise<void> {}
  info(): Record<string, never> {
    return {};
  }
  async close(): Promise<void> {}
}

const DEVICE: DriverDescription = {
  name: 'fake',
  kind: 'protocol',
  options: driverOptions({}),
  open: async () => new FakeDevice(),
};

/** A graph without a machine. */
export function newGraph(): Graph {
  const clock = { nowMs: () => 0 };
  return new Graph({ clock, trace: new Trace(NO_TRACE_OUTPUT) } as unknown as Host);
}

/** A node that holds one device. */
export function newNode(name: string, readOnly = false): { node: Node; device: FakeDevice } {
  const node = new Node({ name, driver: DEVICE, options: {}, readOnly, monitorOwned: true });
  const device = new FakeDevice();
  node.opened(device);
  return { node, device };
}

/** A user of a fake device. */
export function newBackend(
  graph: Graph,
  perm: number,
  shared = ALL_PERMISSIONS,
  more: Partial<BackendProperties> = {},
): BlockBackend {
  return graph.createBackend({ description: 'a test', perm, shared, ...more });
}
