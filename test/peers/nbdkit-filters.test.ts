import { spawn, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { connectUnix } from './daemon.js';
import { ToolPair } from './tool-pair.js';

/**
 * Servers of nbdkit's, made of its filters and of scripts that refuse: its own tester of clients. The tools do with each what
 * QEMU's do.
 */

const NAME = "'nbd+unix:///?socket=s'";
const io = (...commands: string[]): string =>
  `io -f raw ${commands.map((command) => `-c '${command}'`).join(' ')} ${NAME}`;

/** Of any length and place. */
const READS_AND_WRITES = [
  io('write -P 5 0 64k', 'read -P 5 0 64k', 'write -P 6 1000 700', 'read -v 992 32', 'read 999 4', 'flush'),
  io('read 1048570 6', 'read 1048570 12', 'write 1048064 512', 'alloc 0 1M', 'map', 'length'),
  io('aio_read 0 4k', 'aio_flush', 'writev 0 512 1024'),
];
const ZEROES = [
  io('write -z 0 128k', 'write -z -u 128k 128k', 'write -z -n 4k 4k', 'discard 0 64k', 'read -P 0 0 64k'),
  io('write -f 0 4k', 'write -z -f 300 5'),
];
const WHOLE = [
  `img info ${NAME}`,
  `img map --output=json -f raw ${NAME}`,
  `img convert -f raw -O raw ${NAME} out`,
  `img convert -n -f raw -O raw source ${NAME}`,
  `img compare -f raw -F raw ${NAME} ${NAME}`,
  `img dd -f raw -O raw if=${NAME} of=part bs=4k count=3 skip=1`,
];
const ALL = [...READS_AND_WRITES, ...ZEROES, ...WHOLE];

interface Server {
  words: string;
  /** Of `ALL` those that are alike; by default all. */
  lines?: readonly string[];
}

const memory = (filters: string, more = ''): Server => ({ words: `${filters} memory 1M ${more}` });
const error = (what: string, code: string, lines: readonly string[] = ALL): Server => ({
  ...memory('--filter=error', `error-${what}=${code} error-${what}-rate=100%`),
  lines,
});
/** A disk by script: what each method does, beside reading zeroes. */
const script = (methods: { [method: string]: string }): Server => {
  const all = { get_size: 'echo 1M', pread: 'head -c $3 /dev/zero', ...methods };
  const words = Object.entries(all).map(([method, body]) => `'${method}=${body}'`);
  return { words: `eval ${words.join(' ')}` };
};
const writable = (methods: { [method: string]: string }): Server =>
  script({ can_write: 'exit 0', pwrite: 'cat >/dev/null', ...methods });

const SERVERS: { [what: string]: Server } = {
  'of smaller requests': memory('--filter=blocksize', 'minblock=4k maxdata=64k maxlen=128k'),
  'of sectors': memory('--filter=blocksize-policy', policy(512, 4096, 65536)),
  'of 4 KiB': memory('--filter=blocksize-policy', policy(4096, 65536, 131072)),
  'of 64 KiB': {
    ...memory('--filter=blocksize-policy', policy(65536, 65536, 65536)),
    lines: READS_AND_WRITES,
  },
  'that cannot be read': error('pread', 'EPERM'),
  'that cannot be written': error('pwrite', 'ENOMEM'),
  'that goes while it is written': error('pwrite', 'ESHUTDOWN'),
  'that cannot be zeroed': error('zero', 'EINVAL', [...READS_AND_WRITES, ...ZEROES]),
  'that cannot be trimmed': error('trim', 'EIO'),
  'that turns bytes around': memory('--filter=swab', 'swab-bits=32'),
  'that flushes for FUA': memory('--filter=fua', 'fuamode=emulate'),
  'that forgets FUA': memory('--filter=fua', 'fuamode=discard'),
  'that reads ahead': memory('--filter=readahead'),
  'without block status': memory('--filter=noextents'),
  'without caching': memory('--filter=nocache', 'cachemode=none'),
  'without zeroes': memory('--filter=nozero', 'zeromode=none'),
  'that writes zeroes itself': memory('--filter=nozero', 'zeromode=emulate'),
  'that zeroes slowly': memory('--filter=nozero', 'fastzeromode=slow'),
  'that does not say whether it zeroes fast': memory('--filter=nozero', 'fastzeromode=none'),
  'for one connection': memory('--filter=multi-conn', 'multi-conn-mode=disable'),
  'of one request after the other': memory('--filter=noparallel', 'serialize=all-requests'),
  'for one client': memory('--filter=limit', 'limit=1'),
  'over another disk': memory('--filter=cow'),
  'with a cache': memory('--filter=cache', 'cache=unsafe'),
  'of an odd length, rounded up': { words: '--filter=truncate memory 1000003 round-up=512' },
  'of an odd length': { words: 'memory 1000003' },
  'of a part of a disk': { words: '--filter=offset memory 2M offset=513 range=1000000' },
  'of a partition': { words: '--filter=partition partitioning source partition=1' },
  'that remembers its status': memory('--filter=cacheextents'),
  'without structured replies': memory('--no-sr'),
  'of fixed newstyle without flags': memory('--mask-handshake=1'),
  'of newstyle': memory('--mask-handshake=0'),
  'that is only read': memory('-r'),
  'of random bytes': { words: 'random 1M seed=4' },
  'of holes': { words: 'sparse-random 16M seed=3 percent=20' },
  'that is full': { words: 'full 1M' },
  'that opens for nobody': script({ open: 'echo EPERM nobody >&2; exit 1' }),
  'of no length': script({ get_size: 'echo 0' }),
  'that reads past its end': script({ pread: 'echo EOVERFLOW >&2; exit 1' }),
  'that is read-only when written': writable({ pwrite: 'cat >/dev/null; echo EROFS >&2; exit 1' }),
  'that is full when written': writable({ pwrite: 'cat >/dev/null; echo ENOSPC >&2; exit 1' }),
  'that cannot be flushed once': {
    ...writable({ can_flush: 'exit 0', flush: 'if mkdir $tmpdir/once; then echo EIO >&2; exit 1; fi' }),
    lines: [io('write 0 4k', 'write 0 4k')],
  },
  'that tells of no holes': script({ can_extents: 'exit 0', extents: 'echo EIO >&2; exit 1' }),
  'that zeroes if it is not to be fast': writable({
    can_zero: 'exit 0',
    can_fast_zero: 'exit 0',
    zero: 'case "$5" in *fast*) echo EOPNOTSUPP >&2; exit 1;; esac',
  }),
  'that may not be trimmed': writable({ can_trim: 'exit 0', trim: 'echo EPERM >&2; exit 1' }),
};

function policy(minimum: number, preferred: number, maximum: number): string {
  return (
    `blocksize-minimum=${minimum} blocksize-preferred=${preferred} blocksize-maximum=${maximum} ` +
    'blocksize-error-policy=error'
  );
}

const missing = ['nbdkit', 'qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;

/** False: this nbdkit has none of it. */
async function serve(context: TestContext, pair: ToolPair, words: string): Promise<boolean> {
  for (const side of ['ours', 'theirs'] as const) {
    const cwd = pair.path(side, '.');
    const server = spawn('sh', ['-c', `exec nbdkit -f -U s ${words}`], { cwd, stdio: 'ignore' });
    context.after(() => server.kill('SIGKILL'));
    for (;;) {
      if (server.exitCode !== null) return false;
      try {
        (await connectUnix(pair.path(side, 's'))).destroy();
        break;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    }
  }
  return true;
}

for (const [what, { words, lines = ALL }] of Object.entries(SERVERS))
  test(`a server ${what}`, { skip }, async (t) => {
    const pair = new ToolPair(t);
    const source = Buffer.alloc(1024 * 1024);
    source.fill(1, 0, 65536);
    source.fill(2, 131072);
    for (const side of ['ours', 'theirs'] as const) writeFileSync(pair.path(side, 'source'), source);
    if (!(await serve(t, pair, words))) return t.skip('not of this nbdkit');
    for (const line of lines) await pair.alike(line);
    pair.alikeInShell('for file in out part; do if [ -e $file ]; then sha256sum $file; fi; done');
  });
