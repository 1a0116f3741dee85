import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost, type Simulation } from '../../src/host/simulated.js';
import { imgMain } from '../../src/programs/img/main.js';
import { ioMain } from '../../src/programs/io/main.js';
import { type ToolAnswer, toolAnswer } from '../kit/tool-answer.js';

/** Power losses in the middle of what the image tool does to an image. */

const SEEDS = Number(process.env['SEEDS'] ?? 6);

/** a <- b <- c, of several lengths, and another image n. */
const PREPARED = [
  'img create -q -f qcow2 -o cluster_size=4k /tmp/a 256k',
  'img create -q -f qcow2 -o cluster_size=4k -b /tmp/a -F qcow2 /tmp/b 200k',
  'img create -q -f qcow2 -o cluster_size=4k -b /tmp/b -F qcow2 /tmp/c 320k',
  'img create -q -f qcow2 -o cluster_size=4k /tmp/n 224k',
  'io write -P 1 0 256k;/tmp/a',
  'io write -P 2 30k 50k;/tmp/b',
  'io write -P 3 60k 70k;/tmp/c',
  'io write -P 5 200k 100k;/tmp/c',
  'io discard 80k 60k;/tmp/c',
  'io write -z 160k 10k;/tmp/c',
  'io write -P 4 10k 200k;/tmp/n',
];

function run(simulation: Simulation, line: string): Promise<ToolAnswer> {
  const [tool, ...words] = line.split(' ');
  if (tool === 'img') return toolAnswer((out) => imgMain(words, out, simulation.host, allDrivers));
  const [command = '', file = ''] = words.join(' ').split(';');
  return toolAnswer((out) => ioMain(['-f', 'qcow2', '-c', command, file], out, simulation.host, allDrivers));
}

async function succeed(simulation: Simulation, line: string): Promise<string> {
  const { code, stdout, stderr } = await run(simulation, line);
  assert.equal(code, 0, `${line}: ${stdout}${stderr}`);
  return stdout;
}

/** What a disk shows, by its first sectors' values and a hash of all. */
const shows = (simulation: Simulation, name: string): Promise<string> =>
  succeed(simulation, `img checksum -f qcow2 /tmp/${name}`);

/** A machine with the images; the power goes at the operation that `cutAfter` counts from when it is set. */
async function prepared(
  seed: number,
): Promise<{ simulation: Simulation; cutAfter: (count: number) => void }> {
  let cutAt = Infinity;
  const simulation: Simulation = createSimulatedHost({
    seed,
    onOperation: ({ index }) => {
      if (index < cutAt) return;
      cutAt = Infinity;
      simulation.powerLoss();
    },
  });
  await simulation.run(async () => {
    for (const line of PREPARED) await succeed(simulation, line);
  });
  return { simulation, cutAfter: (count) => void (cutAt = simulation.operationCount + count) };
}

/** How many operations a command takes. */
async function operationsOf(line: string): Promise<number> {
  const { simulation } = await prepared(1);
  const before = simulation.operationCount;
  await simulation.run(() => succeed(simulation, line));
  return simulation.operationCount - before;
}

for (const line of [
  'img rebase -f qcow2 -b /tmp/a -F qcow2 /tmp/c',
  'img rebase -f qcow2 -b /tmp/n -F qcow2 /tmp/c',
  'img rebase -f qcow2 -b  /tmp/c',
  'img commit -f qcow2 /tmp/c',
  'img commit -f qcow2 -b /tmp/a /tmp/c',
  'img compact -f qcow2 /tmp/c',
])
  test(`a power loss in the middle of '${line}' leaves what the image shows`, async () => {
    const operations = await operationsOf(line);
    for (let seed = 0; seed < SEEDS; seed++) {
      const { simulation, cutAfter } = await prepared(seed);
      const expected = await simulation.run(() => shows(simulation, 'c'));
      // Mostly near the end, where one file gives way to another, or after it: what was answered is durable.
      cutAfter(seed % 3 === 2 ? Math.floor((seed * operations) / SEEDS) : Math.max(1, operations - 3 * seed));
      await simulation.run(() =>
        Promise.race([run(simulation, line).then(() => simulation.powerLoss()), simulation.powerLost]),
      );
      cutAfter(Infinity);
      simulation.reboot();
      const [shown, checked] = await simulation.run(async () => [
        await shows(simulation, 'c'),
        await run(simulation, 'img check -f qcow2 /tmp/c'),
      ]);
      assert.equal(shown, expected, `seed ${seed}`);
      assert.ok([0, 3].includes(checked.code ?? -1), `seed ${seed}: ${checked.stdout}`);
    }
  });

for (const [line, name] of [
  ['img resize -f raw /tmp/r 96k', 'r'],
  ['img resize -f raw --preallocation=full /tmp/r 96k', 'r'],
  ['img dd -f raw -O raw if=/tmp/r of=/tmp/copy', 'copy'],
] as const)
  test(`what '${line}' has done is durable when it answers`, async () => {
    for (let seed = 0; seed < SEEDS; seed++) {
      const { simulation } = await prepared(seed);
      const hash = (): Promise<string> => succeed(simulation, `img checksum -f raw /tmp/${name}`);
      const expected = await simulation.run(async () => {
        await succeed(simulation, 'img dd -f qcow2 -O raw bs=1k count=64 if=/tmp/a of=/tmp/r');
        await succeed(simulation, line);
        return hash();
      });
      simulation.powerLoss();
      simulation.reboot();
      assert.equal(await simulation.run(hash), expected, `seed ${seed}`);
    }
  });

for (const [line, failing] of [
  ['img resize -f raw --shrink /tmp/r 32k', ['truncate', 'flush']],
  ['img resize -f raw --preallocation=full /tmp/r 96k', ['truncate', 'write', 'flush', 'allocate']],
  ['img resize -f raw --preallocation=falloc /tmp/r 96k', ['truncate', 'write', 'flush', 'allocate']],
] as const)
  test(`when '${line}' fails, the disk is as before or as asked for`, async () => {
    const { simulation: made } = await prepared(1);
    await made.run(() => succeed(made, 'img dd -f qcow2 -O raw bs=1k count=64 if=/tmp/a of=/tmp/r'));
    const done = made.ifPowerWent(1, 'everything');
    await done.run(() => succeed(done, line));
    const allowed = [made.contentOf('/tmp/r'), done.contentOf('/tmp/r')];
    let failures = 0;
    for (const op of failing)
      for (const once of [true, false])
        for (let afterCount = 0; afterCount < 4; afterCount++) {
          const machine = made.ifPowerWent(afterCount, 'everything');
          machine.injectFault({ op, errno: op === 'flush' ? 'EIO' : 'ENOSPC', once, afterCount });
          const { code, stderr } = await machine.run(() => run(machine, line));
          if (code !== 0) failures++;
          const content = machine.contentOf('/tmp/r');
          const isRight = allowed
            .slice(code === 0 ? 1 : 0)
            .some((one) => one?.equals(content ?? Buffer.alloc(0)));
          assert.ok(isRight, `${op} ${afterCount}: ${content?.length} bytes, ${stderr}`);
          if (code !== 0)
            assert.match(stderr, /^qemu-img: .*(No space left on device|Input\/output error)\n$/);
        }
    assert.ok(failures > 0);
  });

test('what is made on a full disk, or made longer there, says what it needed the space for', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    await succeed(simulation, 'img create -q -f raw /tmp/raw 64k');
    await succeed(simulation, 'img create -q -f qcow2 /tmp/qcow2 64k');
    simulation.limitSpace({ capacityBytes: simulation.usedBytes + 512 * 1024, tells: 'early' });
    for (const [mode, what] of [
      ['falloc', 'preallocate new data'],
      ['full', 'write zeros for preallocation'],
    ] as const) {
      const text = `Could not ${what}: No space left on device\n`;
      for (const format of ['raw', 'qcow2']) {
        const created = await run(
          simulation,
          `img create -q -f ${format} -o preallocation=${mode} /tmp/n 8M`,
        );
        assert.deepEqual([created.code, created.stderr], [1, `qemu-img: /tmp/n: ${text}`]);
        const resized = await run(
          simulation,
          `img resize -f ${format} --preallocation=${mode} /tmp/${format} 8M`,
        );
        assert.deepEqual([resized.code, resized.stderr], [1, `qemu-img: ${text}`]);
      }
    }
    simulation.limitSpace({ capacityBytes: simulation.usedBytes, tells: 'early' });
    await succeed(simulation, 'img create -q -f raw /tmp/n 8M');
  });
});

test('a bitmap whose removal fails before the header is written leaves the image as it was', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    await succeed(simulation, 'img create -q -f qcow2 -o cluster_size=4k /tmp/a 1M');
    for (const name of ['b0', 'b1']) await succeed(simulation, `img bitmap -f qcow2 --add /tmp/a ${name}`);
  });
  // The mark of those in use, the new directory, and two of refcounts.
  for (const afterCount of [0, 1, 2, 3]) {
    const machine = simulation.ifPowerWent(1, 'everything');
    machine.injectFault({ op: 'write', errno: 'ENOSPC', once: true, afterCount });
    await machine.run(async () => {
      const { code, stderr } = await run(machine, 'img bitmap -f qcow2 --remove /tmp/a b0');
      assert.equal(code, 1);
      assert.match(stderr, /No space left on device/);
      assert.match(await succeed(machine, 'img info -f qcow2 /tmp/a'), /name: b0/);
      assert.match(await succeed(machine, 'img check -f qcow2 /tmp/a'), /^No errors were found/);
    });
  }
});
