import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { Json } from '../../src/block/driver.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { Engine, type EngineProperties } from '../../src/monitor/engine.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';

export const MiB = 1024 * 1024;
export const DISK_BYTES = 8 * MiB;

/** An engine in a folder of its own, driven by untyped commands as a QMP client drives it. */
export class EngineBed {
  readonly engine: Engine;
  readonly folder: string;
  readonly printed: string[] = [];
  readonly printedErrors: string[] = [];
  readonly events: Array<{ event: string; data: { [key: string]: Json } }> = [];
  #wake: () => void = () => undefined;

  /** With a `folder`, which is there, the test closes the engine itself. */
  constructor(
    context: TestContext,
    { folder, ...properties }: Partial<EngineProperties> & { folder?: string } = {},
  ) {
    this.folder = folder ?? mkdtempSync(join(tmpdir(), 'livedisk-engine-'));
    this.engine = new Engine({
      host: createRealHost(),
      drivers: allDrivers,
      kind: 'machine',
      print: (line) => this.printed.push(line),
      printError: (line) => this.printedErrors.push(line),
      ...properties,
    });
    this.engine.onEvent((event, data) => {
      this.events.push({ event, data });
      this.#wake();
    });
    if (folder !== undefined) return;
    context.after(async () => {
      await this.engine.close();
      rmSync(this.folder, { recursive: true, force: true });
    });
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  /** A new qcow2 image as a node of that name. */
  async image(name: string, options: { [key: string]: Json } = {}): Promise<void> {
    const filename = this.path(`${name}.qcow2`);
    await createImage(this.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
    const file = { driver: 'file', filename };
    await this.engine.addNode({ driver: 'qcow2', 'node-name': name, file, ...options });
  }

  /** [A] <-- [B] <-- ... as nodes A, B, ..., the last one the disk of device virtio0. */
  async chain(...names: string[]): Promise<void> {
    const [base = 'A', ...overlays] = names;
    await this.image(base);
    await this.device(base);
    await this.guest('write -P 0x11 0 4M');
    let top = base;
    for (const [i, name] of overlays.entries()) {
      await this.snapshot(top, name);
      await this.guest(`write -P ${0x21 + i} ${(i + 1) * MiB} 1M`);
      top = name;
    }
  }

  async device(node: string, more: { endpoint?: string } = {}): Promise<void> {
    await this.engine.addDevice(node, {
      id: 'virtio0',
      ...(more.endpoint !== undefined && { endpoint: { type: 'unix', path: more.endpoint } }),
    });
  }

  execute(command: string, args: JsonObject = {}): Promise<JsonValue> {
    return this.engine.hub.execute(command, args) as Promise<JsonValue>;
  }

  /** The description of the error that the command ends with. */
  async refusal(command: string, args: JsonObject = {}): Promise<string> {
    const error = await this.execute(command, args).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    assert.ok(error instanceof Error, `${command} ${JSON.stringify(args)} was not refused`);
    return error.message;
  }

  snapshot(node: string, overlay: string): Promise<JsonValue> {
    return this.execute('blockdev-snapshot-sync', {
      'node-name': node,
      'snapshot-file': this.path(`${overlay}.qcow2`),
      'snapshot-node-name': overlay,
      format: 'qcow2',
    });
  }

  /** A qemu-io command on the guest's disk; throws unless it succeeded. */
  async guest(command: string): Promise<void> {
    const before = this.printed.length;
    await this.execute('human-monitor-command', { 'command-line': `qemu-io -d virtio0 "${command}"` });
    const text = this.printed.slice(before).join('\n');
    assert.doesNotMatch(text, /failed|rror/, command);
  }

  /** Waits for an event of a job, and answers its data. */
  async event(name: string, jobId: string): Promise<{ [key: string]: Json }> {
    for (;;) {
      const found = this.events.find(({ event, data }) => event === name && data['device'] === jobId);
      if (found) return found.data;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  /** Node names of the disk's chain, top first. */
  async layers(): Promise<string[]> {
    const device = this.engine.devices.get('virtio0');
    assert.ok(device);
    const names: string[] = [];
    for (
      let node = device.backend.node.skipFilters() as ReturnType<typeof device.backend.node.backingNode>;
      node;
      node = node.backingNode()
    )
      names.push(node.name);
    return names;
  }
}
