import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonValue } from '../../src/schema/types.js';
import type { Answers } from '../../src/view/answers.js';
import { assemble, buildView } from '../../src/view/build.js';
import { bytesOfLayers, cellsOf, type ClusterMap, mapText } from '../../src/view/cluster-map.js';
import { layOut } from '../../src/view/layout.js';
import { metricsText } from '../../src/view/metrics.js';
import type { Image, View } from '../../src/view/model.js';
import { Rates } from '../../src/view/rates.js';
import { markup } from '../../src/view/shape.js';
import { drawPicture, drawSvg } from '../../src/view/svg.js';
import { drawText } from '../../src/view/text.js';
import { drawTop } from '../../src/view/top.js';
import { printableJson, progressText } from '../../src/view/words.js';
import { MOVERS, RECORDINGS, recorded, recordedView, UNSEEN, withMover } from './recorded.js';

const MiB = 1024 * 1024;

test('a chain is drawn as the document draws it, with the guest on the active layer', () => {
  const lines = drawText(recordedView('livedisk-graph')).split('\n');
  assert.match(lines[3] ?? '', /^ {4}\[A\] +<-- \[B\] +<-- \[C\] +<-- \[D\] <== virtio0, export e2$/);
  assert.match(lines.join('\n'), /^ {4}\[A\] +<-- \[E\] +<-- \(T\) +<== export e1\n {4}\(above\)/m);
});

test("a job's arrow goes from what flows to what it flows into", () => {
  const stream = drawText(recordedView('qemu-stream')).split('\n');
  const names = stream.find((line) => line.includes('[A]')) ?? '';
  const arrow = stream.find((line) => /=+ s \d+% =+>/.test(line)) ?? '';
  assert.ok(arrow.indexOf('=') >= names.indexOf('[C]') && arrow.indexOf('=') < names.indexOf('[D]'), arrow);
  assert.ok(arrow.indexOf('>') > names.indexOf('[D]'), arrow);
  const commit = drawText(recordedView('storage-daemon-commit-below')).split('\n');
  const left = commit.find((line) => /<=+ c \d+% =+$/.test(line)) ?? '';
  assert.ok(left.indexOf('<') < names.indexOf('[B]'), left);
  assert.match(drawText(recordedView('qemu-mirror')), /^mirror m {2}\[D\] --> \[E\]$/m);
});

test('no line is longer than the terminal', () => {
  for (const name of RECORDINGS)
    for (const columns of [40, 80, 200])
      for (const isColoured of [false, true]) {
        const view = recordedView(name);
        const note = 'the server has not answered for 5 s; what is below is old';
        const options = { columns, isColoured };
        const top = drawTop({ view, disks: new Map() }, { ...options, note });
        for (const line of [...drawText(view, options).split('\n'), ...top])
          assert.ok([...line.replaceAll(/\x1b\[\d+m/g, '')].length <= columns, `${name} ${columns}: ${line}`);
      }
});

test('a job that says it has done more than all, or less than nothing, is drawn', () => {
  for (const progress of [{ 'x-progress': { percent: 1e9 } }, { 'x-progress': { percent: -7 } }, -5, 1e300]) {
    const own = typeof progress === 'number' ? { 'current-progress': progress } : progress;
    const job = { id: 'j', type: 'mirror', status: 'running', 'current-progress': 1, 'total-progress': 8 };
    const view = buildView({ 'query-jobs': [{ ...job, ...own }] });
    assert.ok([0, 100].includes(view.jobs[0]?.percent ?? 50));
    assert.match(drawTop({ view, disks: new Map() }).join('\n'), /\[(#{30}|\.{30})\] (100|0)% /);
  }
});

/** A chain of so many images, as a server would have it. */
function longChain(layers: number): View {
  const images = Array.from({ length: layers }, (_, i): Image => ({
    ...{ id: `n${i}`, label: `n${i}`, kind: 'image', driver: 'qcow2', filename: `/images/${i}.qcow2` },
    ...{ virtualBytes: 1024 * MiB, allocatedBytes: MiB, isReadOnly: i + 1 < layers, isCorrupt: false },
    ...{ isEncrypted: false, isImplicit: false, bitmaps: [], snapshotNames: [], warnings: [] },
    children: i === 0 ? [] : [{ role: 'backing', id: `n${i - 1}` }],
    overlays: i + 1 < layers ? [`n${i + 1}`] : [],
  }));
  return assemble({ server: { name: 'test' }, images, users: [], jobs: [] });
}

test('500 layers are drawn, and warned of', () => {
  const view = longChain(500);
  assert.equal(view.chains[0]?.images.length, 500);
  const text = drawText(view);
  assert.match(text, /\[n0\]/);
  assert.match(text, /\[n499\]/);
  assert.match(text, /! \[n499\] has a chain of 500 layers/);
  assert.equal(layOut(view).get('n499')?.column, 499);
  assert.equal(drawSvg(view).match(/data-image/g)?.length, 500);
});

/** The recording with every name and text of it changed. */
function renamed(answers: Answers, change: (text: string) => string): Answers {
  const walk = (value: JsonValue, key: string): JsonValue => {
    if (Array.isArray(value)) return value.map((one) => walk(one, key));
    if (typeof value === 'object' && value !== null)
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, walk(one, name)]));
    const isName =
      /^(node-name|filename|file|id|device|name)$/.test(key) && typeof value === 'string' && value !== '';
    return isName &&
      !/^(main node|source|target|base|active node|intermediate node|root|backing|file)$/.test(value)
      ? change(value)
      : value;
  };
  return walk(answers, '') as Answers;
}

const HOSTILE = '"><script>alert(1)</script><svg onload=x>&\u001b[31m\u001b]0;t\u0007\u202e\n\r\u0000';

test('names that are markup or move a cursor stay names', () => {
  for (const name of ['livedisk-mirror', 'livedisk-graph', 'qemu-commit']) {
    const view = buildView(renamed(recorded(name), (text) => `${HOSTILE}${text}`));
    assert.ok(view.chains.length > 0);
    const svg = drawSvg(view);
    assert.doesNotMatch(
      svg.slice(svg.indexOf('</style>')),
      /<script|<svg|on\w+="|&(?!(amp|lt|gt|quot|#39);)/,
    );
    assert.equal(svg.match(/<svg/g)?.length, 1);
    const texts = [svg, drawText(view), drawTop({ view, disks: new Map() }).join('\n')];
    for (const text of texts) assert.doesNotMatch(text, UNSEEN);
    for (const line of metricsText(view).trimEnd().split('\n'))
      assert.match(line, /^(# |[a-z_]+(\{([a-z_]+="([^"\\\n]|\\["\\n])*",?)*\})? -?[0-9.e+]+$)/s, line);
  }
});

test('whatever a server says, nothing is drawn that is not seen or moves a cursor', () => {
  for (const name of RECORDINGS)
    for (const mover of MOVERS) {
      const answers = withMover(recorded(name), mover);
      const view = buildView(answers);
      const image = view.images.find(({ overlays }) => overlays.length === 0);
      const texts = [
        ...[drawText(view), drawTop({ view, disks: new Map() }).join('\n'), drawSvg(view)],
        ...view.jobs.map((job) => progressText(job)),
        ...(image ? [printableJson({ name: image.id })] : []),
      ];
      for (const text of texts) assert.doesNotMatch(text, UNSEEN, `${name} ${JSON.stringify(mover)}`);
    }
});

test('what is shown as JSON says the same as before', () => {
  for (const mover of MOVERS) {
    const value = { name: `a${mover}\u{e0041}b`, list: [mover] };
    assert.doesNotMatch(printableJson(value), UNSEEN);
    assert.deepEqual(JSON.parse(printableJson(value, 2)), value);
  }
});

test('colours are asked for', () => {
  assert.ok(!drawText(recordedView('qemu-chain')).includes('\x1b'));
  const coloured = drawText(recordedView('qemu-chain'), { isColoured: true });
  assert.match(coloured, /\x1b\[1m\[A\]\x1b\[0m/);
  assert.equal(coloured.replaceAll(/\x1b\[\d+m/g, ''), drawText(recordedView('qemu-chain')));
});

test('rates are those of the time between two looks', () => {
  const first = recordedView('livedisk-stream');
  const [job] = first.jobs;
  const [user] = first.users;
  assert.ok(job && user?.statistics);
  const later: View = {
    ...first,
    jobs: [{ ...job, done: job.done + 2 * MiB }],
    users: [
      {
        ...user,
        statistics: {
          ...user.statistics,
          write: {
            count: user.statistics.write.count + 100,
            bytes: user.statistics.write.bytes + MiB,
            failed: 0,
            totalMs: user.statistics.write.totalMs + 50,
          },
        },
      },
    ],
  };
  const rates = new Rates();
  assert.equal(rates.look(first, 1000).disks.size, 0);
  const { view, disks } = rates.look(later, 3000);
  assert.equal(view.jobs[0]?.rate, MiB);
  assert.equal(view.jobs[0]?.secondsLeft, (job.total - job.done - 2 * MiB) / MiB);
  const disk = disks.get(user.id);
  assert.deepEqual(
    [disk?.writeOperations, disk?.writeBytes, disk?.writeLatencyMs, disk?.readLatencyMs],
    [50, MiB / 2, 0.5, undefined],
  );
  // Counters that began anew are no negative rate.
  assert.equal(rates.look(first, 4000).disks.get(user.id)?.writeBytes, 0);
});

test('the map of clusters gives each cell to the layer that has most of it', () => {
  const map: ClusterMap = {
    diskBytes: 4 * MiB,
    layers: ['top', 'base'],
    extents: [
      { start: 0, lengthBytes: MiB, layer: 1, isZero: false },
      { start: MiB, lengthBytes: MiB / 4, layer: 0, isZero: false },
      { start: 1.25 * MiB, lengthBytes: 1.75 * MiB, isZero: true },
      { start: 3 * MiB, lengthBytes: MiB, layer: 0, isZero: true },
    ],
  };
  assert.deepEqual(
    cellsOf(map, 4).map(({ layer, part }) => [layer, part]),
    [
      [1, 1],
      [0, 0.25],
      [undefined, 1],
      [undefined, 1],
    ],
  );
  assert.deepEqual(bytesOfLayers(map), [MiB / 4, MiB]);
  assert.match(mapText(map), /^ +0 B {2}A{16}B{4}\.{44}$/m);
  assert.deepEqual(cellsOf({ ...map, diskBytes: 0, extents: [] }, 4), []);
});

test('metrics have a line for each number', () => {
  const text = metricsText(recordedView('qemu-mirror'));
  for (const line of [
    'livedisk_disk_operations_total{disk="virtio0",operation="write"} 0',
    'livedisk_image_virtual_bytes{node="D",file="D.qcow2",format="qcow2"} 8388608',
    'livedisk_job_total{job="m",type="mirror"} 8388608',
    'livedisk_job_status{job="m",type="mirror",status="running"} 1',
  ])
    assert.ok(text.split('\n').includes(line), `${line}\n${text}`);
});

test("what stands on a job's arrow is told apart in a picture, where spaces are one", () => {
  const view = recordedView('livedisk-mirror');
  const jobs = view.jobs.map((job) => ({
    ...job,
    ...{
      stage: 'follow',
      rate: 2 * 1024 * 1024,
      dirtyRate: 1024,
      secondsLeft: 3,
      outlook: 'in-step' as const,
    },
  }));
  assert.match(
    markup(drawPicture({ ...view, jobs }, { hasPace: true })),
    />follow, 2\.0 MiB\/s, guests change 1\.0 KiB\/s, 3\.0 s left, in step</,
  );
});
