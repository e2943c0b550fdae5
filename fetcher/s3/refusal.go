// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/smithy-go"

	"github.com/overlaybd-go/overlaybd/fetcher/rangeget"
)

// refusal is an answer without the bytes asked for.
type refusal struct {
	response *http.Response // without a body
	code     string         // such as NoSuchKey; what S3 goes by, more than the status
	message  string
	region   string // where the bucket is, if the answer tells
}

func newRefusal(err error, r *http.Response) *refusal {
	no := &refusal{response: r, region: r.Header.Get("X-Amz-Bucket-Region")}
	var coded smithy.APIError
	if errors.As(err, &coded) {
		no.code, no.message = coded.ErrorCode(), coded.ErrorMessage()
	}
	return no
}

// remedy is what makes another request worth while at once.
type remedy int

const (
	none remedy = iota
	otherRegion
	freshCredentials
	rightClock
)

// remedy returns what may mend the refusal of a request sent to a region.
func (no *refusal) remedy(region string) remedy {
	switch no.code {
	case "RequestTimeTooSkewed":
		return rightClock
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch",
		"XAdminUserNotFound": // versitygw's word for InvalidAccessKeyId
		return freshCredentials
	}
	switch no.response.StatusCode {
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusBadRequest:
		if no.region != "" && no.region != region && !strings.ContainsAny(no.region, "/@:?#. ") {
			return otherRegion // where it ends up in a host name
		}
	}
	return none
}

// advice says what to do about a code that only a person can do something
// about.
var advice = map[string]string{
	"ExpiredToken":          "the credentials have expired and have been read anew in vain: renew them",
	"ExpiredTokenException": "the credentials have expired and have been read anew in vain: renew them",
	"TokenRefreshRequired":  "the credentials have expired and have been read anew in vain: renew them",
	"InvalidToken":          "the session's token is not valid: renew the credentials",
	"InvalidAccessKeyId":    "the server does not know the access key: check the profile and the credentials file",
	"XAdminUserNotFound":    "the server does not know the access key: check the profile and the credentials file",
	"SignatureDoesNotMatch": "the secret key does not belong to the access key, or the region is not the bucket's",
	"RequestTimeTooSkewed":  "the clock of this machine is wrong: set it",

	"AuthorizationHeaderMalformed": "the region may be wrong",
}

// err returns the error that the refusal stands for.
func (no *refusal) err(anonymous bool) error {
	r := *no.response
	hint := advice[no.code]
	switch {
	case hint != "":
		r.StatusCode = http.StatusForbidden // servers say 400 or 404 to some of them
	case no.code == "AccessDenied" && anonymous:
		hint = "it may not be read without credentials"
	case no.code == "InvalidObjectState":
		return fmt.Errorf("the object is archived at %s: restore it first", r.Request.URL.Host)
	case r.StatusCode == http.StatusPreconditionFailed:
		return rangeget.Changed(r.Request.URL.Host)
	case r.StatusCode < http.StatusBadRequest && r.StatusCode >= http.StatusMultipleChoices:
		return fmt.Errorf("%s answered %d %s: the bucket is in another region", r.Request.URL.Host, r.StatusCode, no.code)
	case no.code == "RequestTimeout" || no.code == "SlowDown" || strings.HasPrefix(no.code, "Throttl") || r.StatusCode < http.StatusMultipleChoices:
		r.StatusCode = http.StatusServiceUnavailable // or an answer that the client could not read
	}
	err := fmt.Errorf("%w (%.60s: %.200q)", rangeget.StatusError(&r), no.code, no.message)
	if hint != "" {
		err = fmt.Errorf("%w: %s", err, hint)
	}
	return err
}
