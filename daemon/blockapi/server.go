// SPDX-License-Identifier: Apache-2.0

package blockapi

import (
	"context"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/overlaybd-go/overlaybd/daemon/blockapi/internal/blockpb"
)

// A Server answers gRPC calls with a [Service].
type Server struct {
	blockpb.UnimplementedBlockServer

	svc Service
}

// NewServer returns a server that calls svc.
func NewServer(svc Service) *Server { return &Server{svc: svc} }

// Register makes gRPC server r offer the service.
func (s *Server) Register(r grpc.ServiceRegistrar) { blockpb.RegisterBlockServer(r, s) }

// Attach implements the gRPC method of that name.
func (s *Server) Attach(ctx context.Context, req *blockpb.AttachRequest) (*blockpb.Attachment, error) {
	a, err := s.svc.Attach(ctx, req.GetId(), req.GetSpecPath())
	if err != nil {
		return nil, failure(ctx, err)
	}
	return toProto(a), nil
}

// Detach implements the gRPC method of that name.
func (s *Server) Detach(ctx context.Context, req *blockpb.DetachRequest) (*blockpb.DetachResponse, error) {
	if err := s.svc.Detach(ctx, req.GetId()); err != nil {
		return nil, failure(ctx, err)
	}
	return &blockpb.DetachResponse{}, nil
}

// Attachments implements the gRPC method of that name.
func (s *Server) Attachments(ctx context.Context, _ *blockpb.AttachmentsRequest) (*blockpb.AttachmentsResponse, error) {
	all, err := s.svc.Attachments(ctx)
	if err != nil {
		return nil, failure(ctx, err)
	}
	resp := &blockpb.AttachmentsResponse{Attachments: make([]*blockpb.Attachment, len(all))}
	for i, a := range all {
		resp.Attachments[i] = toProto(a)
	}
	return resp, nil
}

// Seal implements the gRPC method of that name.
func (s *Server) Seal(ctx context.Context, req *blockpb.SealRequest) (*blockpb.SealResponse, error) {
	if err := s.svc.Seal(ctx, req.GetSpecPath(), req.GetDst()); err != nil {
		return nil, failure(ctx, err)
	}
	return &blockpb.SealResponse{}, nil
}

// Expect implements the gRPC method of that name.
func (s *Server) Expect(ctx context.Context, req *blockpb.ExpectRequest) (*blockpb.ExpectResponse, error) {
	blobs := make([]Blob, len(req.GetBlobs()))
	for i, b := range req.GetBlobs() {
		blobs[i] = Blob{Digest: digest.Digest(b.GetDigest()), Size: b.GetSize(), Target: digest.Digest(b.GetTarget()), SpecPath: b.GetSpecPath()}
	}
	if err := s.svc.Expect(ctx, req.GetRepository(), blobs...); err != nil {
		return nil, failure(ctx, err)
	}
	return &blockpb.ExpectResponse{}, nil
}

// answerKey is a trailer that tells an error of the service from one of the
// connection: both may be "unavailable", and only the latter is worth repeating
// at once.
const answerKey = "answered"

func failure(ctx context.Context, err error) error {
	_ = grpc.SetTrailer(ctx, metadata.Pairs(answerKey, "1")) // without it the call is repeated, to no harm
	return errgrpc.ToGRPC(err)
}

func toProto(a Attachment) *blockpb.Attachment {
	return &blockpb.Attachment{
		Id:           a.ID,
		SpecPath:     a.SpecPath,
		Exporter:     a.Exporter,
		Path:         a.Path,
		File:         a.File,
		Writable:     a.Writable,
		Size:         a.Size,
		Image:        a.Image,
		State:        string(a.State),
		Error:        a.Error,
		FetchedBytes: a.FetchedBytes,
		CachedBytes:  a.CachedBytes,
		LayerBytes:   a.LayerBytes,
		LocalBytes:   a.LocalBytes,
		Near:         a.Near,
	}
}

func fromProto(a *blockpb.Attachment) Attachment {
	return Attachment{
		ID:           a.GetId(),
		SpecPath:     a.GetSpecPath(),
		Exporter:     a.GetExporter(),
		Path:         a.GetPath(),
		File:         a.GetFile(),
		Writable:     a.GetWritable(),
		Size:         a.GetSize(),
		Image:        a.GetImage(),
		State:        State(a.GetState()),
		Error:        a.GetError(),
		FetchedBytes: a.GetFetchedBytes(),
		CachedBytes:  a.GetCachedBytes(),
		LayerBytes:   a.GetLayerBytes(),
		LocalBytes:   a.GetLocalBytes(),
		Near:         a.GetNear(),
	}
}
