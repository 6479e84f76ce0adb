"""S3's errors: one class, and one table from code to status and message.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and the messages that
S3 in fact answers where they differ from that list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine import errors as engine_errors
from engine.errors import EngineError

__all__ = ["CODES", "ENGINE_ERRORS", "S3Error", "s3_error", "translate"]


class S3Error(Exception):
    """One error as S3 answers it. Make it with ``s3_error``."""

    def __init__(self, code: str, status: int, message: str, extra: dict[str, str]) -> None:
        super().__init__(code, message)
        self.code = code
        self.status = status
        """HTTP status."""
        self.message = message
        self.extra = extra
        """Further elements of the XML document, by element name, in order."""


def s3_error(code: str, message: str | None = None, /, **extra: str) -> S3Error:
    """Return the error for ``raise``; ``message`` None means the code's own one.

    Element names that are no identifiers go in as ``**{"X-Amz-Expires": "60"}``.

    Raises:
        KeyError: the code is not in ``CODES``: our bug.
    """
    status, default = CODES[code]
    return S3Error(code, status, default if message is None else message, extra)


CODES: dict[str, tuple[int, str]] = {
    "AccessControlListNotSupported": (400, "The bucket does not allow ACLs"),
    "AccessDenied": (403, "Access Denied"),
    "AccessForbidden": (403, "CORSResponse: CORS is not enabled for this bucket."),
    "AuthorizationHeaderMalformed": (
        400,
        "The authorization header that you provided is not valid.",
    ),
    "AuthorizationQueryParametersError": (
        400,
        "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, "
        "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.",
    ),
    "BadDigest": (400, "The Content-MD5 you specified did not match what we received."),
    "BadRequest": (400, "Bad Request"),
    "BucketAlreadyExists": (
        409,
        "The requested bucket name is not available. The bucket namespace is shared by all users "
        "of the system. Please select a different name and try again.",
    ),
    "BucketAlreadyOwnedByYou": (
        409,
        "Your previous request to create the named bucket succeeded and you already own it.",
    ),
    "BucketNotEmpty": (409, "The bucket you tried to delete is not empty"),
    "ConditionalRequestConflict": (
        409,
        "The conditional request cannot succeed due to a conflicting operation against this "
        "resource.",
    ),
    "ConnectionClosedByRequester": (400, "The connection was closed by the requester."),
    "CORSForbidden": (403, "CORSResponse: This CORS request is not allowed."),
    "CredentialsNotSupported": (400, "This request does not support credentials."),
    "EntityTooLarge": (400, "Your proposed upload exceeds the maximum allowed size"),
    "EntityTooSmall": (400, "Your proposed upload is smaller than the minimum allowed size"),
    "ExpiredToken": (400, "The provided token has expired."),
    "IllegalLocationConstraintException": (
        400,
        "The specified location constraint is incompatible for the region specific endpoint this "
        "request was sent to.",
    ),
    "IllegalVersioningConfigurationException": (
        400,
        "The versioning configuration specified in the request is invalid.",
    ),
    "InsufficientStorage": (
        507,
        "There is no room for new data. Deleting objects still works.",
    ),
    "IncompleteBody": (
        400,
        "You did not provide the number of bytes specified by the Content-Length HTTP header",
    ),
    "IncorrectNumberOfFilesInPostRequest": (
        400,
        "POST requires exactly one file upload per request.",
    ),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (
        403,
        "The AWS Access Key Id you provided does not exist in our records.",
    ),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidBucketAclWithObjectOwnership": (
        400,
        "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
    ),
    "InvalidBucketName": (400, "The specified bucket is not valid."),
    "InvalidBucketOwnerAWSAccountID": (
        400,
        "The value of the expected bucket owner parameter must be an AWS account ID.",
    ),
    "InvalidBucketState": (409, "The request is not valid with the current state of the bucket."),
    "InvalidChunkSizeError": (
        403,
        "Only the last chunk is allowed to have a size less than 8192 bytes",
    ),
    "InvalidDigest": (400, "The Content-MD5 you specified was invalid."),
    "InvalidEncryptionAlgorithmError": (
        400,
        "The encryption request you specified is not valid. The valid value is AES256.",
    ),
    "InvalidLocationConstraint": (400, "The specified location-constraint is not valid"),
    "InvalidObjectState": (
        403,
        "The operation is not valid for the object's storage class",
    ),
    "InvalidPart": (
        400,
        "One or more of the specified parts could not be found.  The part may not have been "
        "uploaded, or the specified entity tag may not match the part's entity tag.",
    ),
    "InvalidPartNumber": (416, "The requested partnumber is not satisfiable"),
    "InvalidPartOrder": (
        400,
        "The list of parts was not in ascending order. Parts must be ordered by part number.",
    ),
    "InvalidPolicyDocument": (
        400,
        "The content of the form does not meet the conditions specified in the policy document.",
    ),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidRedirectLocation": (
        400,
        "The website redirect location must have a prefix of 'http://' or 'https://' or '/'.",
    ),
    "InvalidRequest": (400, "Invalid Request"),
    "InvalidSecurity": (403, "The provided security credentials are not valid."),
    "InvalidStorageClass": (400, "The storage class you specified is not valid"),
    "InvalidTag": (400, "The tag provided was not a valid tag."),
    "InvalidTargetBucketForLogging": (400, "The target bucket for logging does not exist."),
    "InvalidToken": (400, "The provided token is malformed or otherwise invalid."),
    "InvalidURI": (400, "Couldn't parse the specified URI."),
    "KeyTooLongError": (400, "Your key is too long"),
    "MalformedACLError": (
        400,
        "The XML you provided was not well-formed or did not validate against our published schema",
    ),
    "MalformedPOSTRequest": (
        400,
        "The body of your POST request is not well-formed multipart/form-data.",
    ),
    "MalformedPolicy": (400, "Policy has invalid resource"),
    "MalformedTrailerError": (
        400,
        "The request contained trailing data that was not well-formed or did not conform to our "
        "published schema.",
    ),
    "MalformedXML": (
        400,
        "The XML you provided was not well-formed or did not validate against our published schema",
    ),
    "MaxMessageLengthExceeded": (400, "Your request was too big."),
    "MaxPostPreDataLengthExceededError": (
        400,
        "Your POST request fields preceding the upload file were too large.",
    ),
    "MetadataTooLarge": (
        400,
        "Your metadata headers exceed the maximum allowed metadata size",
    ),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "MissingAttachment": (400, "A SOAP attachment was expected, but none were found."),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header."),
    "MissingRequestBodyError": (400, "Request Body is empty"),
    "MissingSecurityElement": (400, "The SOAP 1.1 request is missing a security element."),
    "MissingSecurityHeader": (400, "Your request was missing a required header"),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchBucketPolicy": (404, "The bucket policy does not exist"),
    "NoSuchCORSConfiguration": (404, "The CORS configuration does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchLifecycleConfiguration": (404, "The lifecycle configuration does not exist"),
    "NoSuchPublicAccessBlockConfiguration": (
        404,
        "The public access block configuration was not found",
    ),
    "NoSuchTagSet": (404, "The TagSet does not exist"),
    "NoSuchTagSetError": (404, "The TagSet does not exist"),
    "NoSuchUpload": (
        404,
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have "
        "been aborted or completed.",
    ),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "NoSuchWebsiteConfiguration": (
        404,
        "The specified bucket does not have a website configuration",
    ),
    "NotImplemented": (
        501,
        "A header you provided implies functionality that is not implemented",
    ),
    "NotModified": (304, "Not Modified"),
    "ObjectLockConfigurationNotFoundError": (
        404,
        "Object Lock configuration does not exist for this bucket",
    ),
    "OperationAborted": (
        409,
        "A conflicting conditional operation is currently in progress against this resource. "
        "Please try again.",
    ),
    "OwnershipControlsNotFoundError": (404, "The bucket ownership controls were not found"),
    "PermanentRedirect": (
        301,
        "The bucket you are attempting to access must be addressed using the specified endpoint. "
        "Please send all future requests to this endpoint.",
    ),
    "PreconditionFailed": (
        412,
        "At least one of the pre-conditions you specified did not hold",
    ),
    # Not AWS's; what Ceph's gateway and others answer.
    "QuotaExceeded": (403, "The bucket has reached its quota. Deleting objects still works."),
    "ReplicationConfigurationNotFoundError": (
        404,
        "The replication configuration was not found",
    ),
    "RequestHeaderSectionTooLarge": (
        400,
        "Your request header section exceeds the maximum allowed request header section size.",
    ),
    "RequestIsNotMultiPartContent": (
        412,
        "Bucket POST must be of the enclosure-type multipart/form-data",
    ),
    "RequestTimeTooSkewed": (
        403,
        "The difference between the request time and the current time is too large.",
    ),
    "RequestTimeout": (
        400,
        "Your socket connection to the server was not read from or written to within the timeout "
        "period. Idle connections will be closed.",
    ),
    "ServerSideEncryptionConfigurationNotFoundError": (
        404,
        "The server side encryption configuration was not found",
    ),
    "ServiceUnavailable": (503, "Service is unable to handle request."),
    "SignatureDoesNotMatch": (
        403,
        "The request signature we calculated does not match the signature you provided. Check "
        "your key and signing method.",
    ),
    "SlowDown": (503, "Please reduce your request rate."),
    "TooManyBuckets": (400, "You have attempted to create more buckets than allowed"),
    "UnexpectedContent": (400, "This request does not support content"),
    "UnsupportedArgument": (400, "The request contained an unsupported argument."),
    "UserKeyMustBeSpecified": (
        400,
        "The bucket POST must contain the specified field name. If it is specified, check the "
        "order of the fields.",
    ),
    "XAmzContentSHA256Mismatch": (
        400,
        "The provided 'x-amz-content-sha256' header does not match what was computed.",
    ),
}
"""Code → (HTTP status, message). An entry that the handlers lack is added here."""


def _bucket_exists(_error: EngineError) -> S3Error:
    # CreateBucket decides who asks; elsewhere the name is simply taken.
    return s3_error("BucketAlreadyExists")


def _no_such_configuration(error: EngineError) -> S3Error:
    assert isinstance(error, engine_errors.NoSuchConfiguration)
    code = {"cors": "NoSuchCORSConfiguration", "tagging": "NoSuchTagSet"}[error.kind]
    return s3_error(code, BucketName=error.bucket)


def _invalid_name(error: EngineError) -> S3Error:
    assert isinstance(error, engine_errors.InvalidName)
    return s3_error("InvalidBucketName", BucketName=error.name)


def _invalid_argument(error: EngineError) -> S3Error:
    assert isinstance(error, engine_errors.InvalidArgument)
    return s3_error("InvalidArgument", error.reason, ArgumentName=error.argument)


def _bad_digest(error: EngineError) -> S3Error:
    assert isinstance(error, engine_errors.BadDigest)
    return s3_error(
        "BadDigest", f"The {error.algorithm} you specified did not match the calculated checksum."
    )


def _too_small(error: EngineError) -> S3Error:
    assert isinstance(error, engine_errors.EntityTooSmall)
    return s3_error(
        "EntityTooSmall",
        ProposedSize=str(error.size),
        MinSizeAllowed=str(error.limit),
        PartNumber=str(error.part_number),
        ETag=error.etag,
    )


def _locked(error: EngineError) -> S3Error:
    assert isinstance(error, engine_errors.Locked)
    return s3_error(
        "OperationAborted",
        "The object is locked by a WebDAV client. Try again when the lock is given back.",
        Key=error.key,
    )


def _plain(code: str, **elements: str) -> Callable[[EngineError], S3Error]:
    """Return a row of the table: ``elements`` are XML elements by the field they show."""

    def make(error: EngineError) -> S3Error:
        extra = {name: str(getattr(error, field)) for name, field in elements.items()}
        return s3_error(code, **extra)

    return make


ENGINE_ERRORS: Mapping[type[EngineError], Callable[[EngineError], S3Error]] = {
    engine_errors.BadDigest: _bad_digest,
    engine_errors.BadPart: _plain("InvalidPart", PartNumber="part_number", ETag="etag"),
    engine_errors.BucketExists: _bucket_exists,
    engine_errors.BucketNotEmpty: _plain("BucketNotEmpty", BucketName="bucket"),
    engine_errors.ConditionConflict: _plain("ConditionalRequestConflict", Key="key"),
    engine_errors.ConfigError: _plain("InternalError"),
    engine_errors.Corrupt: _plain("InternalError"),
    engine_errors.EntityTooLarge: _plain(
        "EntityTooLarge", ProposedSize="size", MaxSizeAllowed="limit"
    ),
    engine_errors.EntityTooSmall: _too_small,
    engine_errors.IncompleteBody: _plain("IncompleteBody"),
    engine_errors.InvalidArgument: _invalid_argument,
    engine_errors.InvalidName: _invalid_name,
    engine_errors.InvalidPartOrder: _plain("InvalidPartOrder"),
    engine_errors.InvalidRange: _plain("InvalidRange", ActualObjectSize="size"),
    engine_errors.IsDeleteMarker: _plain("MethodNotAllowed"),
    engine_errors.Locked: _locked,
    engine_errors.NoSpace: _plain("InsufficientStorage"),
    engine_errors.NoSuchBucket: _plain("NoSuchBucket", BucketName="bucket"),
    engine_errors.NoSuchConfiguration: _no_such_configuration,
    engine_errors.NoSuchKey: _plain("NoSuchKey", Key="key"),
    engine_errors.NoSuchLock: _plain("InternalError"),
    engine_errors.NoSuchUpload: _plain("NoSuchUpload", UploadId="upload_id"),
    engine_errors.NoSuchVersion: _plain("NoSuchVersion", Key="key", VersionId="version_id"),
    engine_errors.NotModified: _plain("NotModified"),
    engine_errors.PreconditionFailed: _plain("PreconditionFailed", Condition="condition"),
    engine_errors.QuotaExceeded: _plain("QuotaExceeded", BucketName="bucket"),
    engine_errors.SlowDown: _plain("SlowDown"),
    engine_errors.StoreReadOnly: _plain("ServiceUnavailable"),
    engine_errors.Unavailable: _plain("ServiceUnavailable"),
}
"""Leaf of the engine's tree → what S3 answers; ``tests/unit/test_s3_errors.py`` proves it whole."""


def translate(error: EngineError) -> S3Error:
    """Return what S3 answers for the engine's error: that of its class or of its nearest parent."""
    for kind in type(error).__mro__:
        make = ENGINE_ERRORS.get(kind)
        if make is not None:
            return make(error)
    return s3_error("InternalError")
