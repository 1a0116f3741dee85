import { BlockError } from '../base/error.js';

/** Whether a filename names a protocol ("nbd://...", "json:{...}") rather than a path. */
export function hasProtocol(filename: string): boolean {
  const colon = filename.indexOf(':');
  const slash = filename.indexOf('/');
  return colon >= 0 && (slash < 0 || colon < slash);
}

/** Folder part of a path with its slash, '' when there is none. */
export function folderOf(path: string): string {
  return path.slice(0, path.lastIndexOf('/') + 1);
}

/**
 * How an image that is opened by the name `imageFilename` has to name `filename`, which is seen from the program's folder:
 * an image's names are seen from the image's.
 */
export function nameSeenFrom(imageFilename: string, filename: string): string {
  if (filename.startsWith('/') || hasProtocol(filename)) return filename;
  const image = imageFilename.replace(/^file:/, '');
  const isHere = !hasProtocol(image) && /^(\.\/+)*$/.test(folderOf(image));
  return isHere ? filename : `${process.cwd()}/${filename}`;
}

/** A backing file name as the image says it, seen from where the image is. */
export function resolveBacking(imageFilename: string, backingFilename: string): string {
  if (backingFilename.startsWith('/') || hasProtocol(backingFilename)) return backingFilename;
  if (
    imageFilename.startsWith('json:') ||
    (hasProtocol(imageFilename) && !imageFilename.startsWith('file:'))
  ) {
    throw new BlockError(
      'invalid',
      `Cannot generate a base directory for ${imageFilename.startsWith('json:') ? 'json:' : 'protocol'} nodes with ` +
        `this filename`,
      { path: imageFilename },
    );
  }
  const image = imageFilename.startsWith('file:') ? imageFilename.slice('file:'.length) : imageFilename;
  return folderOf(image) + backingFilename;
}
