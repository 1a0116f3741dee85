import { NO_TRACE_OUTPUT, Trace } from '../../src/base/trace.js';
import { assert } from '../../src/base/assert.js';
import type { BlockBackend } from '../../src/block/backend.js';
import type { Json } from '../../src/block/driver.js';
import { Graph } from '../../src/block/graph.js';
import { CHECKED } from '../../src/block/layers/layer-maps.js';
import type { Node } from '../../src/block/node.js';
import { Opener } from '../../src/block/open.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { DriverRegistry } from '../../src/block/registry.js';
import type { Host } from '../../src/host/host.js';
import { JobManager } from '../../src/jobs/manager.js';
import type { MemoryBehaviour } from './memory-layer.js';

/** The parts of a host that memory images and jobs need: real timers. */
export function memoryHost(): Host {
  let counter = 0;
  const clock = {
    nowMs: () => performance.now(),
    wallClock: () => ({ seconds: 0, microseconds: 0 }),
    setTimer: (delayMs: number, callback: () => void) => {
      const timer = setTimeout(callback, delayMs);
      return { cancel: () => clearTimeout(timer) };
    },
    sleep: (delayMs: number) => new Promise<void>((resolve) => setTimeout(resolve, delayMs)),
    macrotask: () => new Promise<void>((resolve) => setImmediate(resolve)),
    defer: (callback: () => void) => void setImmediate(callback),
  };
  const random = { below: (bound: number) => counter++ % bound, bytes: (n: number) => Buffer.alloc(n) };
  const files = { buffer: (lengthBytes: number) => Buffer.alloc(lengthBytes) };
  return { clock, files, random, trace: new Trace(NO_TRACE_OUTPUT) } as unknown as Host;
}

/** A generator of numbers in [0, bound) that one seed decides. */
export function seeded(seed: number): (bound: number) => number {
  let state = (seed ^ 0x9e3779b9) >>> 0;
  return (bound) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * bound);
  };
}

/** Half of the requests wait some turns of the event loop. */
export function restless(below: (bound: number) => number): MemoryBehaviour {
  return {
    isLate: () => below(2) === 0,
    delay: async () => {
      const turns = below(4);
      if (turns === 3) await new Promise((resolve) => setImmediate(resolve));
      else for (let i = 0; i < turns; i++) await Promise.resolve();
    },
  };
}

/** An engine without programs around it: graph, jobs, and what they told. */
export class JobBench {
  readonly graph: Graph;
  readonly jobs: JobManager;
  readonly opener: Opener;
  readonly events: Array<{ event: string; data: { [key: string]: Json } }> = [];

  constructor(host: Host = memoryHost(), drivers: DriverRegistry = new DriverRegistry([])) {
    this.graph = new Graph(host);
    this.graph.layerMaps.settings = CHECKED;
    this.opener = new Opener(this.graph, drivers);
    this.jobs = new JobManager(this.opener, (event, data) => void this.events.push({ event, data }));
  }

  /** A guest's disk on a node. */
  async guest(node: Node): Promise<BlockBackend> {
    const backend = this.graph.createBackend({
      description: "block device '/machine/guest'",
      perm: Permission.consistentRead | Permission.write,
      shared: ALL_PERMISSIONS - Permission.write - Permission.resize,
    });
    await this.graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
    return backend;
  }

  /** The story so far: statuses by name, other events by theirs. */
  story(id: string): string[] {
    return this.events
      .filter(({ data }) => data['id'] === id || data['device'] === id)
      .map(({ event, data }) => (event === 'JOB_STATUS_CHANGE' ? statusOf(data) : event));
  }

  /** Data of the last event of that name. */
  last(event: string): { [key: string]: Json } | undefined {
    return this.events.findLast((entry) => entry.event === event)?.data;
  }

  /** Waits until an event of that name came. A job that ends with an error instead throws it. */
  async until(event: string, status?: string): Promise<void> {
    while (
      !this.events.some((e) => e.event === event && (status === undefined || e.data['status'] === status))
    ) {
      const error = this.last('BLOCK_JOB_COMPLETED')?.['error'];
      if (typeof error === 'string') throw new Error(error);
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
}

/** All bytes of a node, through its chain. */
export async function contents(node: Node): Promise<Buffer> {
  const buffer = Buffer.alloc(node.lengthBytes);
  await node.io.readBuffer(0, buffer);
  return buffer;
}

/** Compares disks; says where they differ. */
export function assertSame(actual: Buffer, expected: Buffer, seed: number): void {
  if (actual.equals(expected)) return;
  const at = actual.findIndex((byte, i) => byte !== expected[i]);
  throw new Error(`seed ${seed}: byte ${at} is ${actual[at]}, not ${expected[at]}`);
}

function statusOf(data: { [key: string]: Json }): string {
  const { status } = data;
  assert(typeof status === 'string', 'a job has a status');
  return status;
}
