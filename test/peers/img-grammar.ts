/** What lines of qemu-img may be made of, sensible and not: data for img-lines.test.ts. */

/** Images that lie there when a run begins, and their formats; `new`: of whatever format a line made them. */
const BY_FORMAT = {
  qcow2: ['a.q', 'b.q', 'c.q', 'n.q', 's.q', 'k.q', 'o.q', 'z.q', 'w.q', 'none', 'new0', 'new2'],
  raw: ['r.raw', 'short.raw', 'new1'],
  vmdk: ['v.vmdk'],
  vdi: ['d.vdi'],
  vhdx: ['h.vhdx'],
  vpc: ['p.vpc'],
  qed: ['e.qed'],
  parallels: ['x.par'],
  luks: ['l.luks'],
} as const;
export const NAMES: ReadonlyArray<readonly [name: string, format: string]> = Object.entries(
  BY_FORMAT,
).flatMap(([format, names]) => names.map((name) => [name, format] as const));

export const SECRET = '--object secret,id=sec0,data=letmein';
const LUKS_INSIDE = 'encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10';

/** Beside the chain a <- b <- c, n and r of every table. */
export const MORE_IMAGES = [
  'qemu-img create -q -f raw short.raw 70k',
  'qemu-io -f raw -c "write -P 8 0 65k" short.raw',
  // With snapshots.
  'qemu-img create -q -f qcow2 s.q 6M',
  'qemu-io -f qcow2 -c "write -P 1 0 1M" s.q',
  'qemu-img snapshot -c s s.q',
  'qemu-io -f qcow2 -c "write -P 2 512k 1M" s.q',
  'qemu-img snapshot -c t s.q',
  // With bitmaps: one that records, one that does not, one that nobody closed.
  'qemu-img create -q -f qcow2 k.q 10M',
  'qemu-img bitmap --add -f qcow2 k.q broken',
  'qemu-io -f qcow2 -c "write 0 1M" -c abort k.q >/dev/null 2>&1 || true',
  'qemu-img bitmap --add -f qcow2 k.q one',
  'qemu-img bitmap --add --disable -g 32k -f qcow2 k.q m',
  'qemu-io -f qcow2 -c "write 3M 200k" k.q',
  // Old, compressed, encrypted, others' formats.
  'qemu-img create -q -f qcow2 -o compat=0.10 o.q 5M',
  'qemu-io -f qcow2 -c "write -P 3 1M 300k" o.q',
  'qemu-img convert -f qcow2 -O qcow2 -c a.q z.q',
  ...['v.vmdk vmdk', 'd.vdi vdi', 'h.vhdx vhdx', 'p.vpc vpc', 'e.qed qed', 'x.par parallels'].map((one) => {
    const [name = '', format = ''] = one.split(' ');
    return `qemu-img convert -f qcow2 -O ${format} a.q ${name}`;
  }),
  // QEMU 7.2 now and then cannot measure how long it took.
  ...['luks -o key-secret=sec0,iter-time=10 l.luks', `qcow2 -o ${LUKS_INSIDE} w.q`].map(
    (rest) => `until qemu-img create -q ${SECRET} -f ${rest} 3M; do :; done 2>/dev/null`,
  ),
];

const FORMATS = ['qcow2', 'raw', 'vmdk', 'vdi', 'vhdx', 'vpc', 'qed', 'parallels', 'luks', 'nofmt'];
const OUTPUT = ['--output=json', '--output=human', '--output=xml'];
const SOURCE = ['-T none', '-T writeback', '-T directsync', '-T bad'];
const TARGET = ['-t none', '-t unsafe', '-t writethrough', '-t bad'];
const RATE = ['-r 1G', '-r 500M', '-r 0', '-r bad', '-r -1'];
const SNAPSHOT = [
  '-l s',
  '-l t',
  '-l 1',
  '-l snapshot.name=s',
  '-l snapshot.id=2',
  '-l gone',
  '-l snapshot.x=1',
];
export const SIZES = ['1M', '70k', '0', '1x', '12345', '+1M', '-1M', '8388608', '9M', '1.5M', '1e3'];

const CREATE = [
  ...['cluster_size=4k', 'cluster_size=3k', 'cluster_size=512', 'cluster_size=2M', 'compat=0.10', 'compat=9'],
  ...['lazy_refcounts=on', 'lazy_refcounts=maybe', 'refcount_bits=8', 'refcount_bits=9', 'refcount_bits=64'],
  ...['preallocation=off', 'preallocation=metadata', 'preallocation=falloc', 'preallocation=full'],
  ...['extended_l2=on', 'extended_l2=on,cluster_size=128k', 'compression_type=zlib'],
  ...['compression_type=zstd', 'compression_type=lz', 'size=2M', 'size=x', 'nothing=1', 'cluster_size'],
  ...['backing_file=a.q,backing_fmt=qcow2', 'backing_file=a.q', 'backing_fmt=qcow2', 'data_file=data'],
  ...['data_file=data,data_file_raw=on', 'nocow=on', 'nocow=x', 'extent_size_hint=1M'],
  // Of other formats.
  ...[
    'subformat=monolithicSparse',
    'subformat=monolithicFlat',
    'subformat=streamOptimized',
    'subformat=fixed',
  ],
  ...['subformat=twoGbMaxExtentSparse', 'subformat=dynamic', 'subformat=bad', 'adapter_type=lsilogic'],
  ...['adapter_type=bad', 'hwversion=6', 'compat6', 'zeroed_grain=on', 'static=on', 'block_size=2M'],
  ...['block_state_zero=off', 'log_size=2M', 'force_size', 'table_size=4', 'table_size=3'],
  ...['key-secret=sec0', 'key-secret=sec0,iter-time=10', 'key-secret=gone', 'iter-time=10'],
  LUKS_INSIDE,
];
const AMEND = [
  ...['compat=0.10', 'compat=1.1', 'compat=v9', 'refcount_bits=16', 'refcount_bits=8', 'refcount_bits=5'],
  ...['lazy_refcounts=on', 'lazy_refcounts=off', 'size=12M', 'size=1', 'backing_file=x', 'data_file=x'],
  ...['backing_file=a.q,backing_fmt=qcow2', 'backing_fmt=raw', 'backing_file=', 'size=x', 'nothing'],
  ...['data_file_raw=on', 'cluster_size=4k', 'nothing=1', 'preallocation=off', 'compression_type=zlib'],
  ...['encrypt.state=active,encrypt.new-secret=sec0,encrypt.iter-time=10', 'encrypt.state=inactive'],
  ...['state=active,new-secret=sec0,iter-time=10', 'state=inactive,keyslot=0', 'state=bad'],
];

/** What stands for an image where options do (`--image-opts`). */
export const OPTION_IMAGES = [
  ...['driver=qcow2,file.filename=a.q', 'file.filename=b.q', 'driver=qcow2,file.filename=c.q,backing=n.q'],
  ...['driver=raw,file.filename=r.raw', 'driver=raw,offset=1M,size=512k,file.filename=r.raw', 'a.q', 'c.q'],
  ...['driver=null-co,size=1M,read-zeroes=on', 'driver=nodriver', 'nothing=1'],
  ...[
    'driver=luks,key-secret=sec0,file.filename=l.luks',
    'driver=qcow2,encrypt.key-secret=sec0,file.filename=w.q',
  ],
  ...['driver=qcow2', 'driver=qcow2,file.driver=file'],
  ...[
    'driver=qcow2,file.filename=none',
    'driver=qcow2,file.filename=r.raw',
    'driver=vmdk,file.filename=v.vmdk',
  ],
  ...['driver=file,filename=r.raw', 'driver=raw,file.driver=file,file.filename=r.raw,force-share=on'],
  ...[
    'driver=qcow2,file.filename=s.q,discard=bad',
    'driver=qcow2,,file=a.q',
    'driver=copy-on-read,file.driver=raw,file.file.filename=r.raw',
  ],
];

/** What may stand in a line: each of the words with a chance, then so many operands. */
export interface Grammar {
  words: ReadonlyArray<readonly string[]>;
  operands: readonly [least: number, most: number];
  /** A size comes last. */
  sizes?: true;
  /** No format is taken. */
  formatless?: true;
  /** It takes no secrets and no --image-opts. */
  plain?: true;
  /** What stands there unless another word does. */
  usual?: readonly string[];
  /** How likely it is drawn, beside 4 of the others. */
  weight?: number;
}

const asOption = (texts: readonly string[]): string[] => texts.map((text) => `-o ${text}`);
const formats = (option: string): string[] => FORMATS.map((format) => `${option} ${format}`);

const CONVERT: Grammar = {
  words: [
    [...formats('-O'), '-O qcow2', '-O qcow2', '-O raw'],
    ['-c'],
    ['-n', '-n', '-n --target-is-zero', '--target-is-zero', '-n --target-image-opts', '--target-image-opts'],
    ['-S 4k', '-S 3', '-S 0', '-S 64k', '-S 1G', '-S bad'],
    ['-m 4', '-m 0', '-m 99', '-m 1', '-m x'],
    ['-W', '-W -m 2', '-C', '-C', '-C -c', '-C -S 4k', '-C --salvage', '--salvage'],
    RATE,
    [
      '-B a.q -F qcow2',
      '-B b.q -F qcow2',
      '-B a.q',
      '-F qcow2',
      '-B r.raw -F raw',
      '-B none -F qcow2',
      '-B a.q -F bad',
    ],
    SNAPSHOT,
    ['--bitmaps', '--bitmaps --skip-broken-bitmaps', '--skip-broken-bitmaps', '--bitmaps -O qcow2'],
    ['-U'],
    ['-q', '-p', '-q -p'],
    SOURCE,
    TARGET,
    asOption(CREATE),
    asOption(CREATE),
  ],
  operands: [1, 4],
  weight: 12,
};

const MEASURE: Grammar = {
  words: [
    formats('-O'),
    ['-O qcow2'],
    OUTPUT,
    ['--size 3M', '--size bad', '--size 0', '--size 1', '--size 100G', '--size 1T'],
    SNAPSHOT,
    ['-U'],
    asOption(CREATE),
    asOption(CREATE),
  ],
  operands: [0, 1],
  weight: 8,
};

export const GRAMMARS: Readonly<Record<string, Grammar>> = {
  info: { words: [OUTPUT, ['-U'], ['--backing-chain'], ['--bad']], operands: [0, 2] },
  check: {
    words: [OUTPUT, SOURCE, ['-U'], ['-q'], ['-r leaks', '-r all', '-r bad']],
    operands: [0, 2],
  },
  map: {
    words: [
      OUTPUT,
      ['-s 1M', '-s 0', '-s 3100k', '-s 20M', '-s bad', '-s -1', '-s 1000', '--start-offset=2M'],
      ['-l 2M', '-l 0', '-l 1', '-l -1', '-l bad', '--max-length=9M', '-l 1G'],
      ['-U'],
    ],
    operands: [0, 2],
    weight: 8,
  },
  compare: {
    words: [formats('-F'), ['-F qcow2'], SOURCE, ['-s'], ['-q', '-p'], ['-U']],
    operands: [1, 3],
  },
  create: {
    words: [
      asOption(CREATE),
      asOption(CREATE),
      ['-u'],
      ['-q'],
      [
        '-b a.q -F qcow2',
        '-b a.q',
        '-F raw',
        '-b none -F qcow2',
        '-b r.raw -F raw',
        '-b a.q -F bad',
        '-b new0 -F qcow2',
      ],
    ],
    operands: [1, 1],
    sizes: true,
  },
  resize: {
    words: [
      ['-q'],
      ['--shrink'],
      [
        '--preallocation=metadata',
        '--preallocation=bad',
        '--preallocation=falloc',
        '--preallocation=full',
        '--preallocation=off',
      ],
    ],
    operands: [1, 1],
    sizes: true,
  },
  amend: { words: [asOption(AMEND), asOption(AMEND), TARGET, ['-q', '-p'], ['--force']], operands: [0, 2] },
  measure: MEASURE,
  snapshot: {
    words: [
      ['-l', '-c s', '-d s', '-a s', '-d t', '-a t', '-l -c s', '-c u', '-a 1', '-d 2', '-c ""'],
      ['-q'],
      ['-U'],
    ],
    operands: [0, 2],
    formatless: true,
    usual: ['-l'],
  },
  bitmap: {
    words: [
      [
        '--add',
        '--remove',
        '--clear',
        '--enable',
        '--disable',
        '--add --disable',
        '--add --remove',
        '--clear --enable',
      ],
      [
        '--merge m',
        '--merge one',
        '--merge broken',
        '--merge gone',
        '--add --merge one',
        '--merge m --merge one',
      ],
      ['-b k.q -F qcow2', '-b k.q', '-F qcow2', '-b none', '-b a.q -F qcow2', '-b r.raw -F raw'],
      ['-g 64k', '-g 3', '-g 1G', '-g 512', '-g 4G', '-g 0', '-g bad'],
    ],
    operands: [1, 2],
    usual: ['--add'],
    weight: 8,
  },
  rebase: {
    words: [['-u'], ['-F qcow2', '-F raw', '-F bad', "-F ''"], SOURCE, TARGET, ['-U'], ['-q', '-p']],
    usual: [
      '-b a.q -F qcow2',
      '-b n.q -F qcow2',
      '-b none',
      "-b ''",
      "-b '' -F qcow2",
      '-b r.raw -F raw',
      '-b b.q -F qcow2',
      '-b a.q',
      '-u',
    ],
    operands: [0, 2],
    weight: 8,
  },
  commit: {
    words: [['-q', '-p'], ['-d'], ['-b a.q', '-b none', '-b b.q', '-b n.q', "-b ''"], TARGET, RATE],
    operands: [0, 2],
    weight: 6,
  },
  convert: CONVERT,
  bench: {
    words: [
      ['-d 4', '-d 1', '-d x', '-d -1'],
      ['-i native', '-i threads', '-i io_uring', '-i bad', '-n'],
      ['--no-drain'],
      [
        '--flush-interval=4',
        '--flush-interval=0',
        '--flush-interval=x',
        '--flush-interval=100',
        '-d 2 --flush-interval=3',
      ],
      ['-o 1M', '-o bad', '-o 100G', '-o 1'],
      ['--pattern=7', '--pattern=256', '--pattern=x', '--pattern=-1', '--pattern=0x10'],
      ['-s 64k', '-s 0', '-s 5G', '-s 513', '-s bad', '-s 1'],
      ['-S 128k', '-S 0', '-S 5G', '-S bad', '-S 1', '-S 30M'],
      ['-w', '-w', '-w -q'],
      ['-t none', '-t writethrough', '-t unsafe', '-t bad'],
      ['-q', '-U'],
      ['-c 0', '-c x', '-c -1', '-c 1'],
    ],
    usual: ['-c 9', '-c 10'],
    operands: [0, 2],
    weight: 6,
  },
  dd: {
    words: [
      formats('-O'),
      ['bs=4k', 'bs=0', 'bs=x', 'bs=1M', 'bs=1 count=900', 'bs=3G', 'bs=-1', 'bs=3000', 'bs='],
      ['count=9', 'count=x', 'count=0', 'count=99999', 'count=1', 'count='],
      ['skip=2', 'skip=9999', 'skip=0', 'skip=x', 'skip='],
      ['if=none', 'of=a.q', 'if=', 'of=', 'iflag=direct', 'conv=notrunc', 'seek=1', 'if', 'count'],
      ['-U', '-n'],
    ],
    operands: [0, 0],
    weight: 6,
  },
};

export interface OwnAnswer {
  readonly line: RegExp;
  /** Words of the row of docs/DIFFERENCES.md that says why. */
  readonly row: string;
}

/** Lines that either tool answers in its own way. */
export const OWN_ANSWERS: readonly OwnAnswer[] = [
  { line: /extent_size_hint/, row: '`extent_size_hint` is refused' },
  { line: /img convert.*\bsize=/, row: '`img convert -o size=` is refused' },
  {
    line: /-[Of] (?!qcow2|raw|luks).*preallocation=|preallocation=.*-[Of] (?!qcow2|raw|luks)/,
    row: '`-o preallocation=` for a format that has none of its own',
  },
  { line: /img bench.*--object/, row: '`img bench` takes `--object`' },
  {
    line: /img measure.*(=bad|=lz|compat=9|subformat|adapter_type|compat=0.10.*(lazy|extended|zstd|refcount|data_file))/,
    row: '`img measure` refuses options',
  },
  {
    line: /img measure.*(lazy|extended|zstd|refcount|data_file).*compat=0.10/,
    row: '`img measure` refuses options',
  },
  {
    line: /img measure.*(backing_file.*preallocation|preallocation.*backing_file|data_file|backing_fmt=qcow2)/,
    row: '`img measure` refuses options',
  },
  {
    line: /convert.*(target-is-zero.* -B |-B .*target-is-zero)/,
    row: '`img convert -n --target-is-zero -B` fails',
  },
  { line: /img rebase .* o\.q$/, row: '`img rebase` of a qcow2 image of version 2' },
  {
    line: /amend.*compat=0.10.* s.q/,
    row: '`img amend -o compat=0.10` is refused for an image with internal snapshots',
  },
  {
    line: /img amend.*(backing_file=.*=|=.*backing_file=)/,
    row: '`img amend` that is refused has changed nothing',
  },
  { line: /img (dd.*count=0|create.* 0$)/, row: 'An empty vhdx or vmdk is opened' },
  {
    line: /img (map|measure|compare|info).*-f raw .*\.q/,
    row: 'New data of a qcow2 file lies at other places',
  },
  { line: /img convert .*-U.* (\S+) (.* )?\1$/, row: 'An image is not copied onto itself' },
  { line: /img dd .*if=(\S+) of=\1$/, row: 'An image is not copied onto itself' },
  { line: /img info .*--image-opts/, row: '`img info --image-opts` tells numbers' },
  { line: /img compare .*-s .*v\.vmdk/, row: '`img compare -s` compares what is there' },
  { line: /img (map|measure|compare).*h\.vhdx/, row: '`img map` and `convert` know where a vhdx' },
  { line: /img snapshot .*-U.*file.driver=file$/, row: 'Of two mistakes in one line' },
  { line: /img rebase.* -b .*--image-opts driver=qcow2,encrypt/, row: 'a relative `img rebase` of an' },
  { line: /img create.* -1M$/, row: 'Of a word of several letters' },
];
