import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { MAX_WAITING_COMPUTE_TASKS } from '../base/limits.js';
import { add, hold } from '../../test/kit/compute-functions.js';
import type { ComputeTask } from './compute.js';
import { RealCompute } from './real-compute.js';

function adding(input = Buffer.of(1)): ComputeTask<number> {
  return { function: add, input, output: Buffer.alloc(input.byteLength), parameters: 1 };
}

/** One thread that is kept busy until release(), and the one task that it takes beside. */
async function busyThread() {
  const compute = new RealCompute(1);
  const output = new Uint8Array(new SharedArrayBuffer(8));
  const words = new Int32Array(output.buffer);
  const held = compute.run({ function: hold, input: Buffer.alloc(0), output, parameters: undefined });
  const next = compute.run(adding());
  for (const run of [held, next]) run.catch(() => undefined);
  return {
    compute,
    isHolding: () => Atomics.load(words, 0) === 1,
    release: async () => {
      Atomics.store(words, 1, 1);
      Atomics.notify(words, 1);
      await Promise.all([held, next]);
    },
  };
}

test('who has many tasks lets others take their turn', async () => {
  const { compute, release } = await busyThread();
  const order: string[] = [];
  const run = (name: string, user: object): Promise<unknown> =>
    compute.run(adding(), { user }).then(() => order.push(name));
  const [greedy, modest] = [{}, {}];
  const runs = Array.from({ length: 10 }, (_, i) => run(`greedy ${i}`, greedy));
  runs.push(run('modest', modest));
  await release();
  await Promise.all(runs);
  assert.deepEqual(order.slice(0, 3), ['greedy 0', 'modest', 'greedy 1']);
  await compute.close();
});

test('only so many tasks of one user wait; room() tells when there is room again', async () => {
  const { compute, release } = await busyThread();
  const runs = Array.from({ length: MAX_WAITING_COMPUTE_TASKS }, () => compute.run(adding()));
  await assert.rejects(compute.run(adding()), { name: 'BlockError', kind: 'limit', errno: 'EAGAIN' });
  const others = compute.run(adding(), { user: {} });
  let hasRoom = false;
  const room = compute.room().then(() => (hasRoom = true));
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(hasRoom, false);
  await release();
  await room;
  await compute.run(adding());
  await Promise.all([...runs, others]);
  await compute.close();
});

test('close() ends a task that never would', { timeout: 20_000 }, async () => {
  const { compute, isHolding } = await busyThread();
  const output = new Uint8Array(new SharedArrayBuffer(8));
  const held = compute.run(
    { function: hold, input: Buffer.alloc(0), output, parameters: undefined },
    { user: {} },
  );
  const failed = assert.rejects(held, { kind: 'closed' });
  while (!isHolding()) await new Promise((resolve) => setImmediate(resolve));
  await compute.close();
  await failed;
});

test('parameters that cannot be sent fail the task, and the thread goes on', async () => {
  const compute = new RealCompute(1);
  const task = { ...adding(), parameters: (() => 1) as unknown as number };
  await assert.rejects(compute.run(task), { name: 'BlockError', message: /could not be cloned/ });
  assert.equal(await compute.run(adding()), 1);
  await compute.close();
});

test('a program that cannot be started fails tasks', async () => {
  const compute = new RealCompute(1);
  const nowhere = { ...add, program: { path: '/nowhere/worker.cjs' } };
  for (let i = 0; i < 2; i++) {
    const run = compute.run({ ...adding(), function: nowhere });
    await assert.rejects(run, { name: 'BlockError', kind: 'io', message: /Cannot find module/ });
  }
  await compute.close();
});

test('idle threads do not keep a program from its end, tasks do', { timeout: 30_000 }, async () => {
  const at = (name: string): string => JSON.stringify(pathToFileURL(`${import.meta.dirname}/${name}`).href);
  const script = `
    const { RealCompute } = await import(${at('real-compute.ts')});
    const { add } = await import(${at('../../test/kit/compute-functions.ts')});
    const compute = new RealCompute(2);
    const task = () => ({ function: add, input: Buffer.alloc(1000), output: Buffer.alloc(1000), parameters: 7 });
    await compute.run(task());
    void Promise.all(Array.from({ length: 20 }, () => compute.run(task()))).then(() => console.log('done'));`;
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const texts: string[] = [];
  child.stdout.setEncoding('utf8').on('data', (text: string) => texts.push(text));
  assert.deepEqual(await once(child, 'close'), [0, null]);
  assert.equal(texts.join(''), 'done\n');
});
