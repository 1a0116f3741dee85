import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Node } from '../../block/node.js';
import { reopen } from '../../block/reopen.js';
import { createSimulatedHost } from '../../host/simulated.js';
import { TestBed, type TestDisk } from '../../../test/kit/test-disk.js';
import { nullCoDriver } from '../null-co/index.js';
import { throttleDriver } from './index.js';

/** A bed in simulated time with a group `g` of ten requests a second. */
async function withBed(body: (bed: TestBed) => Promise<void>): Promise<void> {
  const simulation = createSimulatedHost({ seed: 1, refuseProbability: 0 });
  await simulation.run(async () => {
    const bed = new TestBed(simulation.host, [nullCoDriver, throttleDriver], '/tmp');
    const limits = { 'iops-total': 10 };
    await bed.graph.objects.add({ 'qom-type': 'throttle-group', id: 'g', limits });
    await body(bed);
  });
}

function open(bed: TestBed, name: string): Promise<TestDisk> {
  const file = { driver: 'null-co', size: 1024 * 1024 };
  return bed.open({ driver: 'throttle', 'node-name': name, 'throttle-group': 'g', file });
}

const BLOCK = Buffer.alloc(512);

/** When each of these writes ends, in milliseconds. */
async function ends(bed: TestBed, disk: TestDisk, count: number): Promise<number[]> {
  const { clock } = bed.host;
  const start = clock.nowMs();
  const writes = Array.from({ length: count }, async () => {
    await disk.write(0, BLOCK);
    return Math.round(clock.nowMs() - start);
  });
  return Promise.all(writes);
}

test('two disks of a group share its pace', () =>
  withBed(async (bed) => {
    const [a, b] = [await open(bed, 'a'), await open(bed, 'b')];
    const [ofA, ofB] = await Promise.all([ends(bed, a, 20), ends(bed, b, 5)]);
    // Of a second and a bit, each has half.
    assert.equal(ofB.at(-1), 1000);
    assert.equal(ofA.filter((t) => t <= 1000).length, 7);
    assert.equal(ofA.at(-1), 2300);
    await a.close();
    await b.close();
  }));

test('a drained section waits for nobody’s turn', () =>
  withBed(async (bed) => {
    const disk = await open(bed, 'a');
    const { clock } = bed.host;
    const writes = ends(bed, disk, 50);
    const start = clock.nowMs();
    await bed.graph.drained([disk.node], async () => {
      assert.ok(clock.nowMs() - start < 5, 'the section waited for throttled requests');
    });
    assert.ok((await writes).every((time) => time < 5));
    // They are counted: the next one waits for all of them.
    assert.deepEqual(await ends(bed, disk, 1), [4900]);
    await disk.close();
  }));

test('limits that change hold for requests that wait', () =>
  withBed(async (bed) => {
    const disk = await open(bed, 'a');
    const writes = ends(bed, disk, 50);
    bed.graph.objects.find('g')?.set('limits', { 'iops-total': 0 });
    assert.ok((await writes).every((time) => time < 5));
    await disk.close();
  }));

test('a node keeps its group, and goes to another when it is reopened', () =>
  withBed(async (bed) => {
    const disk = await open(bed, 'a');
    const { objects } = bed.graph;
    const inUse = { message: "object 'g' is in use, can not be deleted" };
    assert.throws(() => objects.delete('g'), inUse);
    await objects.add({ 'qom-type': 'throttle-group', id: 'free' });
    const change = (group: string): Promise<void> => changeGroup(bed, disk.node, group);
    await assert.rejects(change('none'), { message: "Throttle group 'none' does not exist" });
    assert.throws(() => objects.delete('g'), inUse);
    const writes = ends(bed, disk, 20);
    await change('free');
    assert.ok((await writes).every((time) => time < 5));
    assert.ok((await ends(bed, disk, 20)).every((time) => time < 5));
    objects.delete('g');
    await disk.close();
    objects.delete('free');
  }));

async function changeGroup(bed: TestBed, node: Node, group: string): Promise<void> {
  const file = node.child('file').node.name;
  const options = { driver: 'throttle', 'node-name': node.name, 'throttle-group': group, file };
  await reopen(bed.graph, [bed.opener.drivers.gate.plan(options)]);
}
