import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { drawn } from '../kit/amount.js';
import { scratch, skipWithout } from './daemon.js';
import { makeImages, type Moment, Side } from './permission-side.js';
import { FIRST_USERS, PENDING_USERS, READY_USERS, SECOND_USERS, type User } from './permission-users.js';

/** Cells in which livedisk answers otherwise than QEMU 7.2, "FIRST, SECOND", and why. */
const DIFFERENCES: ReadonlyMap<string, string> = new Map([
  ['backup AE, mirror CA', 'of the two conflicts that it makes, QEMU tells the other'],
  ['backup AE, pending, mirror CA', 'of the two conflicts that it makes, QEMU tells the other'],
]);

async function compare(
  context: TestContext,
  name: string,
  first: User | undefined,
  moment: Moment,
): Promise<void> {
  if (skipWithout(context, 'qemu-img', 'qemu-io', 'qemu-storage-daemon')) return;
  const folder = scratch(context);
  const images = join(folder, 'images');
  mkdirSync(images);
  makeImages(images);
  const sides = [new Side(context, 'theirs', images, folder), new Side(context, 'ours', images, folder)];
  const begin = async (): Promise<Array<string | undefined>> =>
    Promise.all(sides.map((side) => side.begin(first, moment)));
  const [theirs, ours] = await begin();
  assert.equal(ours, theirs, name);
  if (theirs !== undefined) return;
  assert.deepEqual(sides[1]?.locks(), sides[0]?.locks(), 'locks of the files');
  for (const [second, user] of SECOND_USERS) {
    const [their, our] = await Promise.all(sides.map((side) => side.second(user)));
    const isListed = DIFFERENCES.has(`${name}, ${second}`);
    if (isListed)
      assert.notEqual(our?.answer, their?.answer, `${name}, then ${second}: no difference any more`);
    else assert.equal(our?.answer, their?.answer, `${name}, then ${second}`);
    if (their?.isChanged === true || our?.isChanged === true) await begin();
    for (const side of sides) side.forgetEvents();
  }
}

test('nobody yet: each user is let in or refused as by QEMU', (context) =>
  compare(context, 'nobody', undefined, 'at work'));

/** They have nothing to copy and are over at once; they are looked at as pending. */
const OVER_AT_ONCE = new Set(['stream C down to B', 'stream E']);

for (const [name, user] of drawn([...FIRST_USERS].filter(([first]) => !OVER_AT_ONCE.has(first))))
  test(`${name}: whoever comes then is let in or refused as by QEMU`, (context) =>
    compare(context, name, user, 'at work'));

for (const [name, user] of drawn([...READY_USERS]))
  test(`${name}, ready: whoever comes then is let in or refused as by QEMU`, (context) =>
    compare(context, `${name}, ready`, user, 'ready'));

for (const [name, user] of drawn([...PENDING_USERS]))
  test(`${name}, pending: whoever comes then is let in or refused as by QEMU`, (context) =>
    compare(context, `${name}, pending`, user, 'pending'));
