import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../base/async.js';
import { defined } from '../base/assert.js';
import { newBackend, newGraph, newNode, WRITER } from '../../test/kit/fake-graph.js';
import type { BlockBackend } from './backend.js';
import type { Graph } from './graph.js';
import type { Node } from './node.js';

const turn = (): Promise<void> => new Promise(setImmediate);

/** Some disks, each with a user. */
async function disks(...names: string[]): Promise<{ graph: Graph; of: (name: string) => Disk }> {
  const graph = newGraph();
  const made = new Map<string, Disk>();
  await graph.transaction((transaction) => {
    for (const name of names) {
      const disk = { ...newNode(name), user: newBackend(graph, WRITER) };
      transaction.add(disk.node);
      transaction.attach(disk.user, 'root', disk.node);
      made.set(name, disk);
    }
  });
  return { graph, of: (name) => defined(made.get(name), name) };
}

type Disk = ReturnType<typeof newNode> & { user: BlockBackend };

/** Attaches a user, or a node above, in a transaction of its own. */
async function attach(graph: Graph, parent: BlockBackend | Node, to: Node): Promise<void> {
  await graph.transaction((transaction) => {
    if ('children' in parent) {
      transaction.add(parent);
      transaction.attach(parent, 'backing', to);
    } else transaction.attach(parent, 'root', to);
  });
}

/** A request that shows when it got through. */
function follow(backend: BlockBackend): { isDone: boolean } {
  const request = { isDone: false };
  void backend.write(0, Buffer.alloc(16)).then(() => (request.isDone = true));
  return request;
}

test('a user who comes to a drained node is held until the section ends', async () => {
  const { graph, of } = await disks('disk');
  const late = newBackend(graph, WRITER);
  const request = await graph.drained([of('disk').node], async () => {
    await attach(graph, late, of('disk').node);
    const held = follow(late);
    assert.equal(late.tryWrite(0, Buffer.alloc(16), 0), false);
    await turn();
    assert.equal(held.isDone, false);
    return held;
  });
  await turn();
  assert.equal(request.isDone, true);
});

test('so is one who comes to a node that was put above, and that node comes to rest', async () => {
  const { graph, of } = await disks('disk');
  const above = newNode('above');
  const late = newBackend(graph, WRITER);
  const request = await graph.drained([of('disk').node], async () => {
    await attach(graph, above.node, of('disk').node);
    await attach(graph, late, above.node);
    const held = follow(late);
    await turn();
    assert.equal(held.isDone, false);
    assert.deepEqual(above.device.drains, ['begin']);
    return held;
  });
  await turn();
  assert.equal(request.isDone, true);
  assert.deepEqual(above.device.drains, ['begin', 'end']);
});

test('who leaves a drained node is released, and who goes to another drained node is not', async () => {
  const { graph, of } = await disks('left', 'right', 'free');
  await graph.drained([of('left').node, of('right').node], async () => {
    const gone = follow(of('left').user);
    const held = follow(of('right').user);
    await graph.transaction((transaction) => {
      transaction.retarget(defined(of('left').user.root, 'root'), of('free').node);
      transaction.retarget(defined(of('right').user.root, 'root'), of('left').node);
    });
    await turn();
    assert.deepEqual([gone.isDone, held.isDone], [true, false]);
  });
  await turn();
  assert.equal(of('right').user.quiesceCount, 0);
});

test('a node that leaves the drained part may go on at once', async () => {
  const { graph, of } = await disks('disk', 'other');
  const above = newNode('above');
  await attach(graph, above.node, of('disk').node);
  await graph.drained([of('disk').node], async () => {
    const link = above.node.child('backing');
    await graph.transaction((transaction) => transaction.retarget(link, of('other').node));
    assert.deepEqual(above.device.drains, ['begin', 'end']);
    await graph.transaction((transaction) => transaction.retarget(link, of('disk').node));
  });
  assert.deepEqual(above.device.drains, ['begin', 'end', 'begin', 'end']);
});

test('sections in each other are one for the driver, and hold users until the last ends', async () => {
  const { graph, of } = await disks('disk');
  const { node, device, user } = of('disk');
  const second = deferred();
  let isOver = false;
  const request = await graph.drained([node], async () => {
    await graph.drained([node], () => undefined);
    void graph.drained([node], () => second.promise).then(() => (isOver = true));
    const held = follow(user);
    await turn();
    assert.equal(held.isDone, false);
    return held;
  });
  await turn();
  assert.deepEqual([request.isDone, device.drains], [false, ['begin']]);
  second.resolve();
  await turn();
  assert.deepEqual([request.isDone, isOver, device.drains], [true, true, ['begin', 'end']]);
});

test('a section whose body fails releases all the same', async () => {
  const { graph, of } = await disks('disk');
  const late = newBackend(graph, WRITER);
  const failure = new Error('the body fails');
  const section = graph.drained([of('disk').node], async () => {
    await attach(graph, late, of('disk').node);
    throw failure;
  });
  await assert.rejects(section, failure);
  const requests = [follow(of('disk').user), follow(late)];
  await turn();
  assert.deepEqual(
    requests.map(({ isDone }) => isDone),
    [true, true],
  );
  assert.deepEqual(of('disk').device.drains, ['begin', 'end']);
});

test('a section waits for drivers to come to rest, also for those who came while it waited', async () => {
  const { graph, of } = await disks('disk');
  const slow = deferred();
  const slower = deferred();
  const log: string[] = [];
  of('disk').device.resting = slow.promise;
  const above = newNode('above');
  above.device.resting = slower.promise;
  const section = graph.drained([of('disk').node], () => void log.push('drained'));
  await attach(graph, above.node, of('disk').node);
  slow.resolve();
  await turn();
  assert.deepEqual(log, []);
  slower.resolve();
  await section;
  assert.deepEqual(log, ['drained']);
});

test('a section waits for the owner of a user who came while it waited', async () => {
  const { graph, of } = await disks('disk');
  const log: string[] = [];
  let isBusy = true;
  const resting = deferred();
  of('disk').device.resting = resting.promise;
  const job = newBackend(graph, WRITER, undefined, {
    queuesWhenDrained: false,
    user: {
      drainBegin: () => void log.push('told'),
      isBusy: () => isBusy,
      drainEnd: () => void log.push('go'),
    },
  });
  const section = graph.drained([of('disk').node], () => void log.push('drained'));
  await attach(graph, job, of('disk').node);
  resting.resolve();
  await turn();
  assert.deepEqual(log, ['told']);
  isBusy = false;
  graph.notifyIdle();
  await section;
  assert.deepEqual(log, ['told', 'drained', 'go']);
});

test("a section's owner goes on in it, and is held in the section of another", async () => {
  const { graph, of } = await disks('disk');
  const { node } = of('disk');
  const [first, second] = [{}, {}];
  const mine = newBackend(graph, WRITER, undefined, { owner: first });
  const theirs = newBackend(graph, WRITER, undefined, { owner: second });
  await attach(graph, mine, node);
  const [firstEnd, secondEnd] = [deferred(), deferred()];
  const sections = [graph.drained([node], () => firstEnd.promise, first)];
  await attach(graph, theirs, node);
  await mine.write(0, Buffer.alloc(16));
  const theirRequest = follow(theirs);
  sections.push(graph.drained([node], () => secondEnd.promise, second));
  const myRequest = follow(mine);
  await turn();
  assert.deepEqual([myRequest.isDone, theirRequest.isDone], [false, false]);
  firstEnd.resolve();
  await turn();
  assert.deepEqual([myRequest.isDone, theirRequest.isDone], [false, true]);
  secondEnd.resolve();
  await Promise.all(sections);
  await turn();
  assert.equal(myRequest.isDone, true);
});

test('a request that was held is held again by a section that begins as the first ends', async () => {
  const { graph, of } = await disks('first', 'second');
  const { node } = of('first');
  const end = deferred();
  let isAgain = false;
  // Told of the end of the first section after the user of 'first' was released, and before that goes on.
  const watcher = newBackend(graph, WRITER, undefined, {
    user: {
      drainEnd: () => {
        if (isAgain) return;
        isAgain = true;
        second = graph.drained([node], () => end.promise);
      },
    },
  });
  let second: Promise<void> | undefined;
  await attach(graph, watcher, of('second').node);
  const request = await graph.drained([node, of('second').node], () => follow(of('first').user));
  await turn();
  assert.deepEqual([isAgain, request.isDone], [true, false]);
  end.resolve();
  await second;
  await turn();
  assert.equal(request.isDone, true);
});

test('an owner who waits until it is unused waits for requests that are held back', async () => {
  const { graph, of } = await disks('disk');
  const { node, user } = of('disk');
  const end = deferred();
  const section = graph.drained([node], () => end.promise);
  await turn();
  const request = follow(user);
  let isUnused = false;
  const unused = user.untilUnused().then(() => (isUnused = true));
  await turn();
  assert.deepEqual([request.isDone, isUnused], [false, false]);
  end.resolve();
  await section;
  await unused;
  assert.equal(request.isDone, true);
});
