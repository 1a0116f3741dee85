import { type Image, imageOf, type Job, NBD_EXPORT, type View } from '../model.js';
import { humanBytes } from '../progress-meter.js';
import { bracketed, printable, userText } from '../words.js';
import { allocatedOf, Change, layersOf, wayDown } from './change.js';
import {
  areFree,
  diskOf,
  isNewFile,
  isNewNode,
  isUsed,
  newJobId,
  refuse,
  startsJob,
  theImage,
} from './checks.js';
import type { Action, Plan, PlannedCommand } from './types.js';

type Of<K extends Action['kind']> = Extract<Action, { kind: K }>;

/** A whole copy, to which the guest goes over. */
export function planMirror(view: View, action: Of<'mirror'>): Plan {
  const image = theImage(view, action.image);
  areFree(view, [image]);
  if (image.overlays.length > 0) refuse(`${bracketed(image)} is not on top of its chain`);
  isUsed(view, image);
  const disk = diskOf(view, image);
  isNewNode(view, action.node);
  isNewFile(view, action.file);
  const way = wayDown(view, image.id);
  const bytesAtMost = allocatedOf(view, way);
  const jobId = newJobId(view, 'mirror');
  const change = new Change(view);
  change.add(copyOf(image, { id: action.node, filename: action.file, allocatedBytes: bytesAtMost }));
  change.replace(image.id, action.node);
  change.drop(way.map(({ id }) => id));
  return {
    action,
    words: [
      `The whole disk is copied into the new image [${action.node}], ${humanBytes(bytesAtMost)} at most, and what the guest writes meanwhile, too.`,
      `When the job is ready, completing it makes the guest go over to [${action.node}]; cancelling it then leaves a copy of that moment.`,
    ],
    commands: [
      {
        execute: 'drive-mirror',
        arguments: {
          ...{ 'job-id': jobId, device: disk.id, target: action.file, 'node-name': action.node },
          ...{ format: 'qcow2', sync: 'full' },
          ...(disk !== image && { replaces: image.id }),
        },
      },
      { execute: 'job-complete', arguments: { id: jobId }, afterReady: true },
    ],
    bytesAtMost,
    copies: { image: image.id, first: 0, end: layersOf(way) },
    invalid: [],
    after: change.result(),
    undo: 'Cancel the job until it is completed; after that the old chain is as it was when the guest left it.',
    ...startsJob(jobId),
  };
}

/** A copy of this moment, of which the server does not keep hold. */
export function planBackup(view: View, action: Of<'backup'>): Plan {
  const image = theImage(view, action.image);
  areFree(view, [image]);
  if (image.overlays.length > 0) refuse(`${bracketed(image)} is not on top of its chain`);
  isNewFile(view, action.file);
  const way = wayDown(view, image.id);
  const bytesAtMost = allocatedOf(view, way);
  const jobId = newJobId(view, 'backup');
  return {
    action,
    words: [
      `What the disk holds at this moment is copied into ${printable(action.file)}, ${humanBytes(bytesAtMost)} at most.`,
      'The guest goes on; what it overwrites is copied first.',
    ],
    commands: [
      {
        execute: 'drive-backup',
        arguments: { 'job-id': jobId, device: image.id, target: action.file, format: 'qcow2', sync: 'full' },
      },
    ],
    bytesAtMost,
    copies: { image: image.id, first: 0, end: layersOf(way) },
    invalid: [],
    after: view,
    undo: 'Cancel the job, and delete the file.',
    ...startsJob(jobId),
  };
}

export function planResize(view: View, action: Of<'resize'>): Plan {
  const image = theImage(view, action.image);
  const { bytes } = action;
  if (!Number.isSafeInteger(bytes) || bytes <= 0 || bytes % 512 !== 0)
    refuse(`a disk's length is a multiple of 512 bytes, not ${bytes}`);
  areFree(view, [image]);
  if (image.overlays.length > 0) refuse(`${bracketed(image)} is not on top of its chain`);
  if (image.isReadOnly) refuse(`nobody may write to ${bracketed(image)}`);
  const disk = diskOf(view, image);
  const way = wayDown(view, disk.id).map(({ id }) => id);
  const resized = way.slice(0, way.indexOf(image.id) + 1);
  const fixing = view.users.find(
    ({ imageId = '', exportType }) => resized.includes(imageId) && exportType === NBD_EXPORT,
  );
  if (fixing) refuse(`${userText(fixing)} keeps the disk at its length over NBD: take it away first`);
  if (bytes === image.virtualBytes) refuse(`${bracketed(image)} is of that length already`);
  const change = new Change(view);
  for (const id of resized) change.update(id, { virtualBytes: bytes });
  const isShorter = bytes < image.virtualBytes;
  return {
    action,
    words: [
      `The disk changes from ${humanBytes(image.virtualBytes)} to ${humanBytes(bytes)}.`,
      isShorter ? 'What lies beyond the new end is lost.' : 'What is added reads as zeroes.',
    ],
    commands: [{ execute: 'block_resize', arguments: { 'node-name': disk.id, size: bytes } }],
    bytesAtMost: 0,
    invalid: isShorter ? [{ id: image.id, why: 'loses what lies beyond its new end' }] : [],
    after: change.result(),
    ...(!isShorter && { undo: 'Resize it back, once the guest uses nothing beyond the old end.' }),
  };
}

/** What a job's verb does, in words, and its command. */
export function planJobVerb(view: View, action: Of<'job'>): Plan {
  const job = view.jobs.find(({ id }) => id === action.job);
  if (!job) refuse(`there is no job '${printable(action.job)}'`);
  if (!job.verbs.includes(action.verb))
    refuse(`job ${printable(job.id)} is ${job.status}, and cannot ${printable(action.verb)}`);
  const { speed = 0 } = action;
  if (!Number.isSafeInteger(speed) || speed < 0)
    refuse(`a speed is a number of bytes a second, not ${speed}`);
  return {
    action,
    words: [verbText(view, job, action.verb, speed)],
    commands: [verbCommand(job, action.verb, speed)],
    bytesAtMost: 0,
    invalid: [],
    after: view,
    ...verbBack(job, action.verb),
  };
}

/** What takes a verb back, where something does. */
function verbBack(job: Job, verb: string): Pick<Plan, 'takenBackBy'> {
  const act = (back: string): Action => ({ kind: 'job', job: job.id, verb: back });
  if (verb === 'pause') return { takenBackBy: act('resume') };
  if (verb === 'resume') return { takenBackBy: act('pause') };
  if (verb === 'set-speed') return { takenBackBy: { ...act('set-speed'), speed: job.speedLimit } as Action };
  return {};
}

/** What a job's verb does. */
export function verbText(view: View, { id, type, status, to }: Job, verb: string, speed: number): string {
  const image = imageOf(view, to);
  const target = image ? bracketed(image) : 'the target';
  const name = `Job ${printable(id)}`;
  switch (verb) {
    case 'pause':
      return `${name} rests until it is resumed.`;
    case 'resume':
      return `${name} goes on.`;
    case 'set-speed':
      return speed === 0
        ? `${name} goes as fast as it can.`
        : `${name} copies ${humanBytes(speed)} a second at most.`;
    case 'complete':
      return `Pivot: the guest goes over to ${target}.`;
    case 'cancel':
      return `${name} ${cancelText(type, status, target)}`;
    case 'finalize':
      return `${name} makes its result the graph's, and ends.`;
    default:
      return `${name} is forgotten.`;
  }
}

/** What the end of a job before its time leaves. */
function cancelText(type: string, status: string, target: string): string {
  const isCopy = status === 'ready' && ['mirror', 'commit'].includes(type);
  if (isCopy) return `ends: ${target} holds the disk of this moment, and the guest stays where it is.`;
  if (type === 'commit') return `ends unfinished: the chain stays, but what ${target} held alone is gone.`;
  if (type === 'stream')
    return `ends unfinished: the chain stays, and the disk shows the same; ${target} keeps what was copied.`;
  return 'ends unfinished; what it copied until now is of no use.';
}

function verbCommand({ id, isBlockJob, status }: Job, verb: string, speed: number): PlannedCommand {
  if (verb === 'set-speed') return { execute: 'block-job-set-speed', arguments: { device: id, speed } };
  // Only this one lets a copy that is ready end well without a pivot.
  if (verb === 'cancel' && isBlockJob && status === 'ready')
    return { execute: 'block-job-cancel', arguments: { device: id } };
  return { execute: `job-${verb}`, arguments: { id } };
}

function copyOf(image: Image, changes: Partial<Image>): Image {
  const label = changes.id ?? image.label;
  return {
    ...image,
    ...{
      label,
      driver: 'qcow2',
      isImplicit: false,
      bitmaps: [],
      snapshotNames: [],
      children: [],
    },
    ...changes,
  };
}
