import { type ClusterMap, bytesOfLayers, mapText } from './cluster-map.js';
import { type FileFacts, fileLines } from './file-use.js';
import { humanBytes } from './progress-meter.js';
import { printable } from './words.js';

/** One image of a chain, as people are told of it. */
export interface ImageFacts {
  readonly filename: string;
  readonly format: string;
  readonly diskBytes: number;
  /** Bytes that it takes on its host, where that is known. */
  readonly fileBytes: number | undefined;
  /** What is particular about it: "zstd compression", "2 internal snapshots" ... */
  readonly features: readonly string[];
  /** Who can read it, where not everybody can who reads the format. */
  readonly needs: readonly string[];
  /** What is wrong with it; empty: nothing was found. */
  readonly problems: readonly string[];
  /** Nobody could look whether something is wrong. */
  readonly isUnchecked: boolean;
  /** Missing: nobody has looked, or its format has nothing to tell of it. */
  readonly file?: FileFacts | undefined;
}

/** What an image is, with all that is below it. */
export interface ImageStory {
  /** The image first, its base last. */
  readonly chain: readonly ImageFacts[];
  /** Why the chain ends before its base. */
  readonly brokenBy: string | undefined;
  /** Whose clusters the disk shows; missing for a broken chain. */
  readonly map: ClusterMap | undefined;
}

/** In words, with the picture of who owns what. */
export function storyText({ chain, brokenBy, map }: ImageStory): string {
  const [top] = chain;
  if (!top) return '';
  const owned = map ? bytesOfLayers(map) : [];
  const parts = [sizeText(top, chain.length)];
  for (const [index, image] of chain.entries()) parts.push(imageText(image, chain[index + 1], owned[index]));
  if (brokenBy !== undefined) parts.push(`The chain is broken: ${printable(brokenBy)}`);
  if (map) parts.push(`Which image each part of the disk comes from:\n\n${mapText(map)}`);
  return `${parts.join('\n\n')}\n`;
}

function sizeText({ filename, format, diskBytes }: ImageFacts, images: number): string {
  const below = images === 1 ? 'It stands alone.' : `It is the top of a chain of ${images} images.`;
  return `${printable(filename)} is ${articled(format)} image of a disk of ${sizeOf(diskBytes)}. ${below}`;
}

function imageText(image: ImageFacts, below: ImageFacts | undefined, ownedBytes: number | undefined): string {
  const lines = [`${printable(image.filename)}: ${image.format}, ${sizeOf(image.diskBytes)}`];
  if (image.fileBytes !== undefined) lines.push(`takes ${humanBytes(image.fileBytes)} on its host`);
  if (image.file) lines.push(...fileLines(image.file));
  if (ownedBytes !== undefined) lines.push(`the disk shows ${humanBytes(ownedBytes)} of data from it`);
  if (below) lines.push(`shows ${printable(below.filename)} where it holds nothing itself`);
  if (below && below.diskBytes !== image.diskBytes)
    lines.push(`its disk is ${below.diskBytes < image.diskBytes ? 'longer' : 'shorter'} than that one's`);
  for (const feature of image.features) lines.push(`has ${printable(feature)}`);
  lines.push(
    image.needs.length === 0
      ? 'every reader of the format can read it'
      : image.needs.map(printable).join('; '),
  );
  if (image.isUnchecked) lines.push('its format has nothing that could be checked');
  else if (image.problems.length === 0) lines.push('nothing is wrong with it');
  for (const problem of image.problems) lines.push(`WRONG: ${printable(problem)}`);
  return lines.join('\n  ');
}

function sizeOf(bytes: number): string {
  return `${humanBytes(bytes)} (${bytes} bytes)`;
}

function articled(format: string): string {
  return `${/^[aeiou]/.test(format) ? 'an' : 'a'} ${format}`;
}
