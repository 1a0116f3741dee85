import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededBelow } from '../kit/crash-states.js';
import { comparable, skip } from './tool-table.js';
import { ToolPair } from './tool-pair.js';

/**
 * Random histories of a few images, done by either side's tools on copies of its own: what they answer and what the images
 * show in the end is alike. IMG_SEED=7 is one history again, IMG_PAIRS how many.
 */
const SEEDS =
  process.env['IMG_SEED'] === undefined
    ? Array.from({ length: Number(process.env['IMG_PAIRS'] ?? 3) }, (_, i) => 1 + i)
    : [Number(process.env['IMG_SEED'])];
const STEPS = Number(process.env['IMG_STEPS'] ?? 24);
const KiB = 1024;

interface Image {
  name: string;
  format: 'qcow2' | 'raw';
  backing: Image | undefined;
  sizeKiB: number;
  isOld: boolean;
  snapshots: string[];
}

class History {
  readonly lines: string[] = [];
  readonly images: Image[] = [];
  readonly #below: (bound: number) => number;
  #made = 0;

  constructor(seed: number) {
    this.#below = seededBelow(seed * 7919);
    for (let i = 0; i < 20; i++) this.#below(2);
    this.#create();
    this.#create();
    while (this.lines.length < STEPS) this.#step();
  }

  #one<T>(of: readonly T[]): T {
    const found = of[this.#below(of.length)];
    assert.ok(found !== undefined);
    return found;
  }

  /** Those that no other shows through. */
  #leaves(): Image[] {
    return this.images.filter((image) => this.images.every(({ backing }) => backing !== image));
  }

  #step(): void {
    const step = this.#one([
      ...[() => this.#create(), () => this.#overlay(), () => this.#convert(), () => this.#resize()],
      ...[() => this.#commit(), () => this.#rebase(), () => this.#rebase(), () => this.#snapshot()],
      ...[
        () => this.#write(),
        () => this.#write(),
        () => this.#write(),
        () => this.#look(),
        () => this.#dd(),
        () => this.#amend(),
        () => this.#repair(),
      ],
    ]);
    step();
  }

  #add(format: Image['format'], backing: Image | undefined, sizeKiB: number, isOld = false): Image {
    const image = { name: `i${this.#made++}`, format, backing, sizeKiB, isOld, snapshots: [] };
    this.images.push(image);
    return image;
  }

  #options(isOld: boolean): string {
    const options = [`cluster_size=${this.#one(['512', '4k', '64k', '64k', '1M'])}`];
    if (isOld) options.push('compat=0.10');
    else if (this.#below(3) === 0) options.push(`refcount_bits=${this.#one(['1', '2', '8', '64'])}`);
    if (!isOld && this.#below(4) === 0) options.push('lazy_refcounts=on');
    return `-o ${options.join(',')}`;
  }

  #create(): void {
    const sizeKiB = 64 + this.#below(4000);
    const format = this.#one(['qcow2', 'qcow2', 'raw'] as const);
    const isOld = format === 'qcow2' && this.#below(5) === 0;
    const { name } = this.#add(format, undefined, sizeKiB, isOld);
    const options = format === 'raw' ? '' : this.#options(isOld);
    this.lines.push(`img create -f ${format} ${options} ${name} ${sizeKiB}k`);
  }

  #overlay(): void {
    const backing = this.#one(this.images);
    const sizeKiB = this.#below(2) === 0 ? backing.sizeKiB : 64 + this.#below(5000);
    const { name } = this.#add('qcow2', backing, sizeKiB);
    const base = `-b ${backing.name} -F ${backing.format}`;
    this.lines.push(`img create -f qcow2 ${this.#options(false)} ${base} ${name} ${sizeKiB}k`);
  }

  #write(): void {
    const image = this.#one(this.#leaves());
    const { name, format, sizeKiB, isOld } = image;
    const commands = Array.from({ length: 1 + this.#below(3) }, () => {
      const offset = this.#below(sizeKiB * 2) * 512;
      const length = Math.min(sizeKiB * KiB - offset, (1 + this.#below(this.#one([4, 200, 2000]))) * 512);
      const kind = this.#below(isOld ? 5 : 6);
      if (kind === 4) return `-c 'write -z ${offset} ${length}'`;
      if (kind === 5) return `-c 'write -z -u ${offset} ${length}'`;
      return `-c 'write -P ${1 + this.#below(250)} ${offset} ${length}'`;
    });
    this.lines.push(`io -f ${format} ${commands.join(' ')} ${name}`);
  }

  #resize(): void {
    const image = this.#one(this.#leaves());
    if (image.isOld && image.snapshots.length > 0) return;
    const grownKiB = 1 + this.#below(2000);
    image.sizeKiB += grownKiB;
    this.lines.push(`img resize -f ${image.format} ${image.name} +${grownKiB}k`);
  }

  /** Another width of refcounts takes QEMU long where each has few bits. */
  #amend(): void {
    const image = this.#one(this.#leaves());
    if (image.format !== 'qcow2' || image.snapshots.length > 0) return;
    const grownKiB = 1 + this.#below(500);
    const option = this.#one([
      ...['lazy_refcounts=on', 'lazy_refcounts=off', 'compat=1.1', 'refcount_bits=16'],
      ...[`size=${(image.sizeKiB + grownKiB) * KiB}`, 'compat=1.1,refcount_bits=64'],
    ]);
    if (image.isOld && option.startsWith('lazy')) return;
    if (option.startsWith('size')) image.sizeKiB += grownKiB;
    if (option.startsWith('compat')) image.isOld = false;
    this.lines.push(`img amend -f qcow2 -o ${option} ${image.name}`);
  }

  #repair(): void {
    const { name, format } = this.#one(this.#leaves());
    if (format === 'qcow2')
      this.lines.push(`img check -q -r ${this.#one(['leaks', 'all'])} -f qcow2 ${name}`);
  }

  #commit(): void {
    const image = this.#one(this.#leaves());
    const { backing } = image;
    if (!backing || this.images.filter((other) => other.backing === backing).length > 1) return;
    if (backing.isOld) return;
    backing.sizeKiB = Math.max(backing.sizeKiB, image.sizeKiB);
    this.lines.push(`img commit -f qcow2 ${this.#one(['', '-d '])}${image.name}`);
  }

  #rebase(): void {
    const image = this.#one(this.#leaves());
    if (image.format !== 'qcow2') return;
    const others = this.images.filter((other) => other !== image);
    const backing = this.#below(4) === 0 ? undefined : this.#one(others);
    image.backing = backing;
    const base = backing ? `-b ${backing.name} -F ${backing.format}` : "-b ''";
    this.lines.push(`img rebase -f qcow2 ${base} ${image.name}`);
  }

  #convert(): void {
    const source = this.#one(this.images);
    const format = this.#one(['qcow2', 'qcow2', 'raw'] as const);
    const compress = format === 'qcow2' && this.#below(3) === 0 ? '-c ' : '';
    const how = `${compress}${this.#one(['', '-W ', '-S 0 ', '-S 64k ', '-m 1 '])}`;
    const { name } = this.#add(format, undefined, source.sizeKiB);
    const options = format === 'raw' ? '' : `${this.#options(false)} `;
    this.lines.push(`img convert -f ${source.format} -O ${format} ${options}${how}${source.name} ${name}`);
  }

  #snapshot(): void {
    const image = this.#one(this.#leaves());
    const { name, snapshots } = image;
    // A snapshot has its own size; what its layers show depends on the backing file, which may change.
    if (image.format !== 'qcow2' || image.backing) return;
    const known = snapshots.at(-1);
    if (known === undefined || this.#below(2) === 0) {
      snapshots.push(`s${this.lines.length}`);
      this.lines.push(`img snapshot -c ${snapshots.at(-1)} ${name}`);
    } else {
      snapshots.pop();
      this.lines.push(`img snapshot -d ${known} ${name}`);
    }
  }

  #look(): void {
    const { name, format } = this.#one(this.images);
    const other = this.#one(this.images);
    this.lines.push(
      this.#one([
        // Where a raw file has its holes is the writer's affair.
        `img measure -f ${format} -O ${format} --output=json ${name}`,
        `img measure -f ${format} -O raw ${name}`,
        `img compare -f ${format} -F ${other.format} ${name} ${other.name}`,
      ]),
    );
  }

  #dd(): void {
    const { name, format, sizeKiB } = this.#one(this.images);
    const count = 1 + this.#below(Math.floor(sizeKiB / 4));
    const { name: copy } = this.#add('raw', undefined, count * 4);
    this.lines.push(`img dd -f ${format} -O raw bs=4k count=${count} if=${name} of=${copy}`);
  }
}

for (const seed of SEEDS)
  test(`a random history of images is the same with either tool, seed ${seed}`, { skip }, async (context) => {
    const pair = new ToolPair(context);
    const history = new History(seed);
    const told = (): string => `seed ${seed}:\n${history.lines.join('\n')}`;
    for (const line of history.lines)
      await pair
        .alike(line, comparable)
        .catch((error: unknown) => assert.fail(`${String(error)}\n${told()}`));
    for (const { name, format } of history.images) {
      const hash = `qemu-img convert -f ${format} -O raw ${name} flat && sha256sum <flat`;
      assert.equal(pair.shell('ours', hash), pair.shell('theirs', hash), `${name} differs, ${told()}`);
      if (format !== 'qcow2') continue;
      pair.shell('ours', `qemu-img check -q -f qcow2 ${name}`);
      await pair.alike(`img check -q -f qcow2 ${name}`);
    }
  });
