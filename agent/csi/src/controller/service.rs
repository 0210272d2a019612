//! The calls as they come: what must be there is, one call, an answer.

use super::Controller;
use crate::name;
use tonic::{Request, Response, Status, async_trait};
use torus_agent::grpc::Failure;
use torus_agent::metadata::unpublish_volume;
use torus_proto::csi::controller_server::Controller as Service;
use torus_proto::csi::controller_service_capability::{self, Rpc, rpc};
use torus_proto::csi::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerServiceCapability,
    ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, CreateVolumeRequest, CreateVolumeResponse,
    DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, ListVolumesRequest,
    ListVolumesResponse, ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
};

/// What is advertised.
const CAPABILITIES: [rpc::Type; 9] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::PublishReadonly,
    rpc::Type::ListVolumes,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::GetVolume,
    rpc::Type::GetCapacity,
    rpc::Type::ExpandVolume,
    // Pods of one node may share a volume, or one may have it alone.
    rpc::Type::SingleNodeMultiWriter,
];

#[async_trait]
impl Service for Controller {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let (this, asked) = (self.clone(), request.into_inner());
        let name = name::of(&asked.name)?;
        self.alone(&name.clone(), async move { this.create(name, asked).await }).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let (this, handle) = (self.clone(), request.into_inner().volume_id);
        required("volume's id", &handle)?;
        self.alone(&handle.clone(), async move { this.delete(&handle).await }).await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let (this, asked) = (self.clone(), request.into_inner());
        required("node's id", &asked.node_id)?;
        let handle = required("volume's id", &asked.volume_id)?.to_owned();
        self.alone(&handle, async move { this.publish(asked).await }).await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let (this, asked) = (self.clone(), request.into_inner());
        let handle = required("volume's id", &asked.volume_id)?.to_owned();
        let unpublishing = async move {
            // What is not there is published to nobody.
            if let Ok(id) = asked.volume_id.parse() {
                let node = Some(asked.node_id.as_str()).filter(|node| !node.is_empty());
                unpublish_volume(&*this.store, id, node).await?;
            }
            Ok(ControllerUnpublishVolumeResponse {})
        };
        self.alone(&handle, unpublishing).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let (this, asked) = (self.clone(), request.into_inner());
        let handle = required("volume's id", &asked.volume_id)?.to_owned();
        self.alone(&handle, async move { this.expand(asked).await }).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let asked = request.into_inner();
        required("volume's id", &asked.volume_id)?;
        Ok(Response::new(self.validate(asked).await?))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        Ok(Response::new(self.capacity(request.into_inner()).await?))
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let handle = request.into_inner().volume_id;
        required("volume's id", &handle)?;
        Ok(Response::new(self.get(&handle).await?))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capability = |kind: rpc::Type| ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities = CAPABILITIES.into_iter().map(capability).collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }
}

fn required<'a>(what: &str, text: &'a str) -> Result<&'a str, Failure> {
    if text.is_empty() { Err(Failure::invalid(format!("the {what} is missing"))) } else { Ok(text) }
}
