import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test, type TestContext } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

/** Both servers that the shell drives, with the same image and a node of it, behind a socket qmp.sock. */
const SERVERS: ReadonlyArray<readonly [string, (context: TestContext, folder: string) => Promise<Daemon>]> = [
  ['livedisk', (context, folder) => start(context, folder, process.execPath, PROGRAM, 'storage-daemon')],
  ['QEMU', (context, folder) => start(context, folder, 'qemu-storage-daemon')],
];

async function start(context: TestContext, folder: string, ...program: string[]): Promise<Daemon> {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '1M');
  run(folder, 'qemu-io', '-c', 'write -P 3 0 1M', 'a.qcow2');
  // The daemon's own client has one of its sockets: QEMU serves one client on each.
  const sockets = ['qmp', 'shell'].flatMap((id) => [
    ...['--chardev', `socket,id=${id},path=${id}.sock,server=on,wait=off`],
    ...['--monitor', `chardev=${id}`],
  ]);
  const image = 'driver=qcow2,node-name=disk,file.driver=file,file.filename=a.qcow2';
  return Daemon.start(context, folder, [...program, '--blockdev', image, ...sockets]);
}

interface Result {
  status: number | null;
  output: string;
  error: string;
}

function shell(folder: string, args: readonly string[], input = ''): Promise<Result> {
  const child = spawn(process.execPath, [PROGRAM, 'shell', 'shell.sock', ...args], { cwd: folder });
  const result: Result = { status: null, output: '', error: '' };
  child.stdout.on('data', (chunk: Buffer) => void (result.output += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => void (result.error += chunk.toString()));
  child.stdin.end(input);
  return new Promise((resolve) => child.once('close', (status) => resolve({ ...result, status })));
}

const LINES = `
blockdev-add driver=null-co node-name=zero size=1048576 read-zeroes=on
blockdev-add driver=raw node-name=py file={'driver': 'null-co', 'read-zeroes': True}
block-dirty-bitmap-add node=disk name=5
block-dirty-bitmap-add node=disk name="a b" granularity=65536
transaction(
block-dirty-bitmap-add node=zero name=first
block-dirty-bitmap-add node=zero name=second
)
transaction( block-dirty-bitmap-add node=zero name=first )
object-add qom-type=throttle-group id=tg limits.iops-total=5
query-jobs
`;

test('the shell drives a QEMU as it does livedisk', async (context) => {
  if (skipWithout(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const outputs: string[] = [];
  for (const [, startServer] of SERVERS) {
    const folder = scratch(context);
    await startServer(context, folder);
    const { status, output, error } = await shell(folder, [], LINES);
    assert.deepEqual({ status, error }, { status: 1, error: '' });
    outputs.push(output);
  }
  const none = '{"return": {}}\n';
  const exists = '{"error": {"class": "GenericError", "desc": "Bitmap already exists: first"}}\n';
  assert.deepEqual(
    outputs,
    Array.from(SERVERS, () => `${none.repeat(5)}${exists}${none}{"return": []}\n`),
  );
});

for (const [name, startServer] of SERVERS)
  test(`one command, and a wait for its job: ${name}`, async (context) => {
    if (skipWithout(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
    const folder = scratch(context);
    await startServer(context, folder);
    const backup = async (target: string, size: string, ...more: string[]): Promise<Result> => {
      const sized = [`node-name=${target}`, 'driver=null-co', `size=${size}`];
      assert.equal((await shell(folder, ['blockdev-add', ...sized])).status, 0);
      const command = ['blockdev-backup', 'job-id=j', 'device=disk', `target=${target}`, 'sync=full'];
      return shell(folder, ['--wait', 'j', ...command, ...more]);
    };
    const good = await backup('t', '1048576');
    assert.deepEqual([good.status, good.output], [0, '{"return": {}}\n']);
    assert.match(good.error, /(^|\n)j completed\n$/);
    const wrong = await backup('small', '512');
    assert.equal(wrong.status, 1);
    assert.match(wrong.output, /"desc": "Source and target image have different sizes"/);
    const failing = [
      'driver=blkdebug',
      'node-name=bad',
      'image=t',
      'inject-error=[{"event":"none","iotype":"write","errno":28}]',
    ];
    assert.equal((await shell(folder, ['blockdev-add', ...failing])).status, 0);
    const failed = await shell(folder, [
      ...['-w', 'j', 'blockdev-backup', 'job-id=j', 'device=disk', 'target=bad', 'sync=full'],
      ...['auto-dismiss=off'],
    ]);
    assert.equal(failed.status, 1, failed.output + failed.error);
    assert.match(failed.error, /\nj failed: No space left on device\n$/);
    assert.equal((await shell(folder, ['job-dismiss', 'id=j'])).status, 0);
    const gone = await shell(folder, ['--wait', 'j']);
    assert.deepEqual([gone.status, gone.error], [1, "livedisk shell: Job 'j' not found\n"]);
    const pending = await backup('t2', '1048576', 'auto-finalize=false');
    assert.match(pending.error, /\nj pending: job-finalize or job-cancel ends it\n$/);
    const ended = await shell(folder, ['--wait', 'j', 'job-finalize', 'id=j']);
    assert.deepEqual([ended.status, ended.error.split('\n').at(-2)], [0, 'j completed']);
  });
