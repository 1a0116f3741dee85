import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { ToolPair } from './tool-pair.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;

const IMAGES = ['qemu-img create -q -f qcow2 a.qcow2 1M', 'qemu-img create -q -f raw a.raw 1M'];

/** Rules files, right and wrong. */
const CONFIGS: readonly string[] = [
  '[inject-error]\nevent = "read_aio"\nerrno = "5"\n\n[set-state]\nstate = "1"\nevent = "write_aio"\nnew_state = "2"\n',
  '[inject-error]\nerrno = "5"\n',
  '[inject-error]\nevent = "xread_aio"\n',
  '[inject-error]\nevent = "read_aio"\nbla = "x"\n',
  '[foo]\nevent = "read_aio"\n',
  'event = "read_aio"\n',
  'junk\n',
  '  \n[inject-error]\nevent = "none"\n',
  '[inject-error\nevent = "none"\n',
  '[inject-error]\nevent = read_aio\n',
  '[inject-error]\nerrno="28"\n',
  '[inject-error]\nevent = "read_aio"\nonce = "maybe"\n',
  '[inject-error]\nevent = "read_aio"\nerrno = "x"\n',
  '[inject-error]\nevent = "read_aio"\niotype = "x"\n',
  '[set-state]\nevent = "read_aio"\n',
  '[inject-error "a"]\nevent = "read_aio"\n# twice\n\n[inject-error "a"]\nevent = "read_aio"\n',
  '[inject-error]\nevent = "l1_grow.alloc_table"\n',
  '[inject-error]\nevent = "none"\nsector = "-1"\nerrno = "5"',
  '[inject-error]\nevent = "none"\nimmediately = "on"\nonce = "on"\nerrno = "0"\n',
  '[inject-error]\n  event = "write_aio"\niotype = "write"\nonce = "on"\nerrno = "28"\n',
  '[inject-error]\nevent = "write_aio"\nerrno = "28"\niotype = "write"\n[inject-error]\nevent = "write_aio"\nerrno = "22"\n',
  '[set-state]\nevent = "write_aio"\nstate = "1"\nnew_state = "2"\n' +
    '[inject-error]\nevent = "write_aio"\nstate = "2"\nerrno = "28"\niotype = "write"\nonce = "on"\n',
];

test('rules files mean what they mean to QEMU, and are refused in its words', { skip }, async (t) => {
  const pair = new ToolPair(t);
  pair.prepare(...IMAGES, ...CONFIGS.map((text, i) => `cat > ${i}.cfg <<'end'\n${text}\nend`));
  for (const i of CONFIGS.keys()) {
    const requests = "-c 'read 0 64k' -c 'write 0 64k' -c 'write 64k 512' -c 'read 0 64k'";
    await pair.alike(`io -f qcow2 ${requests} blkdebug:${i}.cfg:a.qcow2`, withoutCacheErrors);
  }
});

/** What either says of tables that cannot be written at the end. */
function withoutCacheErrors(text: string): string {
  return text.replace(/^qemu-io: (Failed to flush the .* cache.*|[A-Z][a-z /]*)$\n?/gm, '').trimEnd();
}

/** Options of a command line are texts in QEMU's names of nodes. */
function withoutQuotedNumbers(text: string): string {
  return text.replace(/: "(\d+)"/g, ': $1');
}

test('names with blkdebug: are those of QEMU', { skip }, async (t) => {
  const pair = new ToolPair(t);
  pair.prepare(...IMAGES, 'echo > none.cfg', 'printf "[inject-error]\nbla = \\"1\\"\n" > bad.cfg');
  const options = (text: string): string => `--image-opts ${text}`;
  for (const name of [
    'blkdebug::a.qcow2',
    'blkdebug:none.cfg:a.qcow2',
    'blkdebug:missing.cfg:a.qcow2',
    'blkdebug:bad.cfg:a.qcow2',
    'blkdebug:a.qcow2',
    'blkdebug:',
    'blkdebug::',
    'blkdebug::missing',
    'blkdebug::blkdebug:none.cfg:a.qcow2',
    'blkdebug::null-co://',
    'blkdebug::nbd:unix:missing.sock',
    `'blkdebug::json:{"driver": "file", "filename": "a.qcow2"}'`,
    options('driver=qcow2,file.driver=blkdebug,file.config=bad.cfg,file.image.filename=a.qcow2'),
    options('driver=blkdebug,config=none.cfg,image.filename=a.qcow2'),
    options('driver=blkdebug,file.filename=a.qcow2'),
    ...['opt-write-zero=3', 'opt-write-zero=4096,opt-discard=512', 'opt-write-zero=4k,max-write-zero=6k'].map(
      (given) => options(`driver=blkdebug,image.filename=a.qcow2,${given}`),
    ),
    options('driver=blkdebug,image.filename=a.qcow2,align=512,opt-discard=700'),
    options('driver=blkdebug,image.filename=a.qcow2,max-transfer=4G'),
  ])
    await pair.alike(`img info ${name}`, withoutQuotedNumbers);
  for (const name of ['blkdebug::a.qcow2', 'blkdebug:none.cfg:a.qcow2', 'a.qcow2', 'blkverify:a.raw'])
    await pair.alike(`img info -f blkdebug ${name}`);
  await pair.alike('img create -f qcow2 blkdebug::new.qcow2 1M');
  await pair.alike('img create -f raw blkdebug::a.raw 1M');
});

test('a failed request of each kind, by its alignment', { skip }, async (t) => {
  const pair = new ToolPair(t);
  pair.prepare(...IMAGES);
  const filter = 'driver=blkdebug,image.filename=a.raw';
  const failing = (type: string): string => `inject-error.0.event=none,inject-error.0.iotype=${type}`;
  for (const [rules, request] of [
    [`opt-write-zero=4k,${failing('write')}`, 'write -z 512 8k'],
    [`opt-write-zero=4k,${failing('write-zeroes')}`, 'write -z 512 2k'],
    [`opt-write-zero=4k,${failing('write-zeroes')}`, 'write -z 512 16k'],
    [`opt-discard=4k,discard=unmap,${failing('discard')}`, 'discard 512 2k'],
    [`opt-discard=4k,discard=unmap,${failing('discard')}`, 'discard 512 16k'],
    [`align=4k,${failing('read')}`, 'write 4k 4k'],
    [`align=4k,${failing('read')}`, 'read 512 4k'],
  ])
    await pair.alike(`io --image-opts -c '${request}' ${filter},${rules}`);
});

/** Each stops the write, so the second line is "blkdebug: Suspended request". */
test('requests stop at the events of a write', { skip }, async (t) => {
  const pair = new ToolPair(t);
  pair.prepare(...IMAGES);
  const stop = (event: string, request: string): string =>
    `-c 'break ${event} A' -c '${request}' -c 'wait_break A' -c 'resume A' -c 'aio_flush'`;
  for (const [i, event] of ['pwritev', 'write_aio', 'cluster_alloc', 'pwritev_done'].entries())
    await pair.alike(`io -f qcow2 ${stop(event, `aio_write ${i * 64}k 64k`)} blkdebug::a.qcow2`);
  for (const event of ['rmw_head', 'rmw_after_head', 'rmw_tail', 'rmw_after_tail'])
    await pair.alike(
      `io --image-opts ${stop(`pwritev_${event}`, 'aio_write 512 12k')} driver=blkdebug,align=4k,image.filename=a.raw`,
    );
  for (const bad of [
    'break x A',
    'break pwritev',
    'resume A',
    'remove_break A',
    'wait_break',
    'break none A',
    'aio_flush',
  ])
    await pair.alike(`io -f qcow2 -c '${bad}' blkdebug::a.qcow2`);
});

/** The nth time that an event comes, the request fails. */
function failingAt(event: string, times: number): string {
  const states = Array.from({ length: times - 1 }, (_, i) => {
    const [from, to] = [i + 1, i + 2];
    return `[set-state]\nevent = "${event}"\nstate = "${from}"\nnew_state = "${to}"\n`;
  });
  return `${states.join('')}[inject-error]\nevent = "${event}"\nstate = "${times}"\nerrno = "28"\nonce = "on"\n`;
}

test('states count the same requests as in QEMU: of a disk, and of an image in it', { skip }, async (t) => {
  const pair = new ToolPair(t);
  const requests = ['write 0 4k', 'write 64k 4k', 'write -z 128k 4k', 'write -z 192k 64k', 'read 0 4k'];
  const commands = [...requests, 'write 320k 64k', 'read 448k 64k', 'write 384k 512'].map(
    (one) => `-c '${one}'`,
  );
  for (const event of ['pwritev', 'pwritev_done', 'pwritev_zero', 'write_aio', 'read_aio', 'read_compressed'])
    for (const times of [1, 2]) {
      // All that is written is there already, so that nothing is written but data.
      pair.prepare(
        ...IMAGES,
        "qemu-io -f qcow2 -c 'write 0 448k' -c 'write -c 448k 64k' a.qcow2",
        `cat > rules.cfg <<'end'\n${failingAt(event, times)}\nend`,
      );
      for (const format of event.startsWith('pwritev') ? ['qcow2', 'raw'] : ['qcow2'])
        await pair.alike(`io -t writeback -f ${format} ${commands.join(' ')} blkdebug:rules.cfg:a.${format}`);
    }
});
